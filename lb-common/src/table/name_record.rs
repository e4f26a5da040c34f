//! Whose a service id is. No program reads this: it lets a restarted agent, and a command beside
//! it, give the live tables their names back.

use crate::addr::Protocol;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of text a [`ServiceName`] holds. Namespace, Service and port names are DNS labels of at
/// most 63 bytes (RFC 1123).
pub const NAME_TEXT: usize = 200;

/// Namespace, name and port name of a service port, one after the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ServiceName {
    /// Length of the namespace in bytes.
    pub namespace_length: u8,
    /// Length of the Service's name in bytes.
    pub name_length: u8,
    /// Length of the port's name in bytes, possibly 0.
    pub port_length: u8,
    /// The service port's protocol.
    pub protocol: Protocol,
    /// 4 or 6: the family this service port is of.
    pub family: u8,
    /// Must be zero.
    pub reserved: [u8; 3],
    /// The three texts without separators, then zeros. UTF-8.
    pub text: [u8; NAME_TEXT],
}

const _: () = assert!(size_of::<ServiceName>() == 208);

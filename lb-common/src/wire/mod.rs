//! Headers as they lie in packets, and the arithmetic of their checksums.
//!
//! Header structures are `packed(2)`: packets promise no more alignment than that. Multi-byte
//! fields are in network order as they lie in memory unless a method says otherwise. Reading and
//! writing packets is [`crate::packet`]'s business, not this module's.

mod checksum;
mod icmp;
mod ip;
mod sctp;
mod transport;

pub use checksum::Difference;
pub use icmp::{Icmp, icmpv4, icmpv6};
pub use ip::{Ipv4, Ipv6, Ipv6Fragment, next_header};
pub use sctp::{Crc32c, Sctp};
pub use transport::{Ports, Tcp, TcpFlags, Udp};

//! Values as people write them, on the command line and in the configuration file alike.
//!
//! Each type parses in one place and answers a bad value with a sentence that shows a good one.

mod choice;

pub(crate) use choice::choice;
pub use choice::{EndpointsApi, Format, LogFormat, Output, SocketLoadBalancing, TcAttach};

use crate::datapath::Devices;
use crate::model::{NodePortAddresses, PodLabel};
use ipnet::IpNet;
use lb_common::table::PACKET_PATH_UDP_PORTS;
use serde::{Deserialize, Deserializer, de};
use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// A list: separated by commas, in the file also a sequence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct List<T>(pub Vec<T>);

impl<T: FromStr> FromStr for List<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(T::from_str)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl<'de, T> Deserialize<'de> for List<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);

        impl<'de, T> de::Visitor<'de> for Items<T>
        where
            T: FromStr,
            T::Err: fmt::Display,
        {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list, or its items separated by commas")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(text) = seq.next_element::<String>()? {
                    items.push(text.parse().map_err(de::Error::custom)?);
                }
                Ok(List(items))
            }
        }

        deserializer.deserialize_any(Items(PhantomData))
    }
}

/// Implements `Deserialize` by way of `FromStr`, so that file and command line agree.
macro_rules! deserialize_from_str {
    ($($kind:ty),+) => {$(
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )+};
}

deserialize_from_str!(BindAddress, Mark, PodLabel, PortRange);

/// Implements `Deserialize` for what may be written as one text or as a list of its parts.
macro_rules! deserialize_from_parts {
    ($($kind:ty),+) => {$(
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let parts = List::<String>::deserialize(deserializer)?;
                parts.0.join(",").parse().map_err(de::Error::custom)
            }
        }
    )+};
}

deserialize_from_parts!(Devices, NodePortAddresses);

/// A range of addresses; bits behind the prefix are ignored, as the API server does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cidr(pub IpNet);

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<IpNet>()
            .map(|net| Self(net.trunc()))
            .map_err(|_| {
                format!("`{text}` is not a CIDR such as 10.244.0.0/16 or fd00:10:244::/56")
            })
    }
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().to_lowercase().as_str() {
            "" | "all" => Ok(Self::All),
            "primary" => Ok(Self::Primary),
            ranges => ranges
                .parse::<List<Cidr>>()
                .map(|list| Self::Ranges(list.0.iter().map(|cidr| cidr.0).collect())),
        }
    }
}

/// An address to listen on; what is not written is the option's usual one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BindAddress {
    /// The address, if one was written.
    pub ip: Option<IpAddr>,
    /// The port, if one was written.
    pub port: Option<u16>,
}

impl BindAddress {
    /// This port on the usual address.
    pub const fn on_port(port: u16) -> Self {
        Self {
            ip: None,
            port: Some(port),
        }
    }

    /// The address with what was not written taken from the usual one.
    pub fn or(self, usual: SocketAddr) -> SocketAddr {
        SocketAddr::new(
            self.ip.unwrap_or(usual.ip()),
            self.port.unwrap_or(usual.port()),
        )
    }
}

impl FromStr for BindAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Nothing means the usual address, as kube-proxy has it.
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self {
                ip: Some(address.ip()),
                port: Some(address.port()),
            });
        }
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
            .unwrap_or(text);
        match bare.parse() {
            Ok(ip) => Ok(Self {
                ip: Some(ip),
                port: None,
            }),
            Err(_) => Err(format!(
                "`{text}` is not an address to listen on, such as 127.0.0.1:10249 or [::]:10249"
            )),
        }
    }
}

/// A range of ports, both ends included: `30000-32767`, also `30000+2767` as the API server takes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PortRange {
    /// The lowest port, host order.
    pub first: u16,
    /// The highest port, host order.
    pub last: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a range of ports such as 30000-32767");
        let number = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
        let (first, last) = if let Some((first, last)) = text.split_once('-') {
            (number(first)?, number(last)?)
        } else if let Some((first, size)) = text.split_once('+') {
            let first = number(first)?;
            (first, first.checked_add(number(size)?).ok_or_else(wrong)?)
        } else {
            (number(text)?, number(text)?)
        };
        if first == 0 || last < first {
            return Err(wrong());
        }
        Ok(Self { first, last })
    }
}

/// Single ports: `53,5353`; `none` for no port.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ports(pub Vec<u16>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().eq_ignore_ascii_case("none") {
            return Ok(Self::default());
        }
        let port = |item: &str| item.trim().parse::<std::num::NonZeroU16>().ok();
        let ports: Option<Vec<_>> = text.split(',').map(port).collect();
        match ports {
            Some(ports) if ports.len() <= PACKET_PATH_UDP_PORTS => Ok(Self(
                ports.into_iter().map(std::num::NonZeroU16::get).collect(),
            )),
            Some(ports) => Err(format!(
                "{} ports are too many: there is room for {PACKET_PATH_UDP_PORTS}",
                ports.len()
            )),
            None => Err(format!(
                "`{text}` is not a list of ports such as 53,5353; nor `none`"
            )),
        }
    }
}

/// In the file also a number, or a sequence of numbers.
impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
            Sequence(Vec<u64>),
        }
        let numbers = |numbers: &[u64]| {
            let texts: Vec<String> = numbers.iter().map(u64::to_string).collect();
            texts.join(",").parse()
        };
        match Written::deserialize(deserializer)? {
            Written::Number(number) => numbers(&[number]),
            Written::Text(text) => text.parse(),
            Written::Sequence(all) if all.is_empty() => Ok(Self::default()),
            Written::Sequence(all) => numbers(&all),
        }
        .map_err(de::Error::custom)
    }
}

/// Bits of a packet's mark: `0x4000`, also in decimal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mark(pub u32);

impl FromStr for Mark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let number = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        let wrong = |_| format!("`{text}` is not the bits of a mark such as 0x4000");
        number.map(Self).map_err(wrong)
    }
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let patterns: Vec<String> = text
            .split(',')
            .map(str::trim)
            .filter(|pattern| !pattern.is_empty())
            .map(str::to_owned)
            .collect();
        if patterns.iter().any(|p| p.eq_ignore_ascii_case("auto")) {
            return if patterns.len() == 1 {
                Ok(Self::Auto)
            } else {
                Err("`auto` stands for every device and cannot be mixed with patterns".to_owned())
            };
        }
        if patterns.is_empty() {
            return Err(
                "no device is named: write `auto` or patterns such as eth*,cali*".to_owned(),
            );
        }
        for pattern in &patterns {
            if pattern.len() > 64 || pattern.contains(['/', ' ', '\t']) {
                return Err(format!("`{pattern}` cannot be part of a device's name"));
            }
        }
        Ok(Self::Globs(patterns))
    }
}

#[cfg(test)]
mod tests;

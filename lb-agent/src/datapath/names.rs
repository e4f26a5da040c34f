//! Names of service ports as the table `lb_names` keeps them.

use crate::model::desired::{Family, ObjectName, ServicePortName};
use lb_common::table::{NAME_TEXT, ServiceName};

/// The record of a name. The planner has made sure that it fits.
pub(super) fn to_record(name: &ServicePortName) -> ServiceName {
    let parts: [&str; 3] = [&name.service.namespace, &name.service.name, &name.port];
    let mut text = [0; NAME_TEXT];
    let bytes = parts.iter().flat_map(|part| part.bytes());
    for (to, from) in text.iter_mut().zip(bytes) {
        *to = from;
    }
    let length = |part: &str| u8::try_from(part.len()).unwrap_or(u8::MAX);
    ServiceName {
        namespace_length: length(parts[0]),
        name_length: length(parts[1]),
        port_length: length(parts[2]),
        protocol: name.protocol,
        family: match name.family {
            Family::V4 => 4,
            Family::V6 => 6,
        },
        reserved: [0; 3],
        text,
    }
}

/// The name in a record; `None` if it is none that [`to_record`] makes.
pub(super) fn from_record(record: &ServiceName) -> Option<ServicePortName> {
    let mut rest = record.text.as_slice();
    let mut next = |length: u8| {
        let (text, after) = rest.split_at_checked(usize::from(length))?;
        rest = after;
        std::str::from_utf8(text).ok()
    };
    let (namespace, name) = (next(record.namespace_length)?, next(record.name_length)?);
    let port = next(record.port_length)?;
    let family = match record.family {
        4 => Family::V4,
        6 => Family::V6,
        _ => return None,
    };
    Some(ServicePortName {
        service: ObjectName {
            namespace: namespace.into(),
            name: name.into(),
        },
        port: port.to_owned(),
        protocol: record.protocol,
        family,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::addr::Protocol;

    #[test]
    fn a_name_survives_its_record() {
        for (namespace, name, port) in [
            ("default", "kubernetes", "https"),
            (&*"n".repeat(63), &*"s".repeat(63), &*"p".repeat(63)),
            ("a", "b", ""),
        ] {
            let name = ServicePortName {
                service: ObjectName {
                    namespace: namespace.into(),
                    name: name.into(),
                },
                port: port.to_owned(),
                protocol: Protocol::UDP,
                family: Family::V6,
            };
            assert_eq!(from_record(&to_record(&name)), Some(name));
        }
    }
}

//! Which sockets must end with the endpoint that they are connected to.
//!
//! A connected UDP socket hears one address only. Where that is the address of an endpoint that was
//! removed, its program waits for answers in vain, and for good if it keeps sending: unlike a flow of
//! the packet path, the socket cannot be moved. Closing it gives the program an error, and its next
//! `connect` a live endpoint. TCP sockets are left alone, as kube-proxy leaves them: the endpoint may
//! still be finishing its work, and if it is not, TCP finds out by itself.

use lb_common::addr::{BackendId, Endpoint};
use std::collections::HashMap;

/// A connected UDP socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seen {
    /// The address it is connected to.
    pub peer: Endpoint,
    /// The backend that our programs sent it to; `None` if they did not.
    pub sent_to: Option<BackendId>,
}

/// True if the socket is connected to one of these `gone` backends because we translated it: what was
/// entered for it names the service's backend, not only an address. Who connected to the address of
/// a pod itself keeps the socket, and so does who came by another service that still has the
/// endpoint.
pub fn must_close<S: std::hash::BuildHasher>(
    socket: &Seen,
    gone: &HashMap<BackendId, Endpoint, S>,
) -> bool {
    // The entry of an earlier connection outlives connect(AF_UNSPEC): the peer must be its own.
    let of = |backend| gone.get(&backend);
    socket.sent_to.and_then(of) == Some(&socket.peer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::addr::{Addr, Port};
    use std::net::IpAddr;

    fn end(text: &str) -> Endpoint {
        Endpoint {
            addr: Addr::from(text.parse::<IpAddr>().unwrap()),
            port: Port::new(53),
        }
    }

    /// Whether a socket connected to `peer` closes when backend 7 at `gone` is gone.
    fn closes(peer: &str, sent_to: Option<u32>, gone: &str) -> bool {
        let seen = Seen {
            peer: end(peer),
            sent_to: sent_to.map(BackendId),
        };
        must_close(&seen, &HashMap::from([(BackendId(7), end(gone))]))
    }

    #[test]
    fn a_socket_that_was_sent_to_a_gone_backend_closes() {
        assert!(closes("10.244.0.9", Some(7), "10.244.0.9"));
        assert!(closes("fd00:244::9", Some(7), "fd00:244::9"));
    }

    #[test]
    fn a_socket_that_nobody_sent_connected_to_the_pod_by_itself_and_stays() {
        assert!(!closes("10.244.0.9", None, "10.244.0.9"));
    }

    #[test]
    fn an_endpoint_of_two_services_that_left_one_of_them_closes_that_one_s_sockets_alone() {
        assert!(!closes("10.244.0.9", Some(8), "10.244.0.9"));
    }

    #[test]
    fn a_socket_that_is_connected_elsewhere_by_now_stays() {
        assert!(!closes("10.244.0.8", Some(7), "10.244.0.9"));
    }
}

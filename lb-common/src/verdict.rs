//! Verdicts and reasons: every decision has a reason, and every reason a counter.

/// What a hook on the packet path is to do with the packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Verdict {
    /// Hand it on, rewritten or not: other people's programs and rules come next.
    Continue,
    /// Be silent.
    Drop,
    /// The packet has been turned into the answer to itself: send it out of the device it came
    /// from (or was about to leave by), with its link-layer addresses exchanged.
    Answer,
    /// The node's own packet has a backend as its destination now: send it where routing sends it
    /// from here, which may be the node itself.
    Route,
    /// The packet is the node's own: hand it to its stack, as if it had come from where packets to
    /// its source go.
    Deliver,
}

/// Why a packet, datagram or connection was treated as it was. The numbers are stable: they index
/// the `lb_reasons` map and name the series of `lb_reasons_total`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u32)]
pub enum Reason {
    /// Not a service's packet: nothing was changed. Not counted (it would cost every packet).
    NotOurs = 0,
    /// A new connection was sent to a backend.
    Opened = 1,
    /// Refused: nobody anywhere serves.
    RejectedNoEndpoint = 2,
    /// Silently dropped: a Local policy and no endpoint here.
    DroppedNoLocalEndpoint = 3,
    /// A mid-flow TCP segment without a record: left to the stack.
    MidFlowWithoutRecord = 4,
    /// The flow table had no room or no lock for a new flow: dropped, the client tries again.
    FlowTableFull = 5,
    /// No free SNAT port near the hash start: dropped, the client tries again.
    SnatPortsExhausted = 6,
    /// The node has no address to SNAT with on the outgoing device.
    SnatNoAddress = 7,
    /// A fragment whose first fragment was not seen: left to the stack.
    FragmentWithoutFirst = 8,
    /// A header that cannot be parsed: left to the stack.
    Unparsable = 9,
    /// The window's generation changed under the reader four times running: dropped.
    WindowUnstable = 10,
    /// UDP to a node port that belongs to a host socket's conversation: left to the stack, by
    /// packets and by the sockets that answer it.
    HostSocket = 11,
    /// A socket whose storage could not be made: left to the packet path.
    SocketStorageExhausted = 12,
    /// An unconnected socket with two services on one backend: left to the packet path.
    SocketAmbiguous = 13,
    /// A socket decision that needs the client's address, which is not known: left to the packet
    /// path.
    SocketClientUnknown = 14,
    /// A socket hook left a drop to the packet path (a socket can only fail at once).
    SocketDropLeftToPacketPath = 15,
    /// A UDP flow moved to another backend because its own is gone.
    MovedFromGoneBackend = 16,
    /// A TCP SYN on the tuple of an unanswered, closing or orphaned flow was balanced afresh.
    Rebalanced = 17,
    /// A packet could not be rewritten (the helper failed): dropped.
    RewriteFailed = 18,
    /// An ICMP error was translated along the flow it quotes.
    IcmpErrorTranslated = 19,
    /// A socket hook left a refusal to the packet path (kernels below 6.1 cannot set the errno).
    SocketRejectLeftToPacketPath = 20,
    /// A frontend, service, slot or backend that should be there was not: left to the stack.
    TableInconsistent = 21,
    /// A socket bound to a loopback address called a service with backends elsewhere: no packet
    /// may leave from there, and a socket hook cannot change the source. Left to the packet path.
    SocketLoopbackSource = 22,
    /// Refused: a port of a ClusterIP that nobody defined.
    RejectedUndefinedPort = 23,
    /// Silently dropped: an address of a ServiceCIDR that no service has.
    DroppedUnusedAddress = 24,
    /// Silently dropped: the source is in none of the service's `loadBalancerSourceRanges`.
    DroppedSourceRange = 25,
    /// A pod's UDP socket connected to a port that is left to the packet path, where a removed
    /// endpoint is replaced.
    SocketUdpLeftToPacketPath = 26,
}

impl Reason {
    /// Number of reasons: the size of `lb_reasons`.
    pub const COUNT: u32 = 27;

    /// Every reason, in order of its number.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::NotOurs,
        Self::Opened,
        Self::RejectedNoEndpoint,
        Self::DroppedNoLocalEndpoint,
        Self::MidFlowWithoutRecord,
        Self::FlowTableFull,
        Self::SnatPortsExhausted,
        Self::SnatNoAddress,
        Self::FragmentWithoutFirst,
        Self::Unparsable,
        Self::WindowUnstable,
        Self::HostSocket,
        Self::SocketStorageExhausted,
        Self::SocketAmbiguous,
        Self::SocketClientUnknown,
        Self::SocketDropLeftToPacketPath,
        Self::MovedFromGoneBackend,
        Self::Rebalanced,
        Self::RewriteFailed,
        Self::IcmpErrorTranslated,
        Self::SocketRejectLeftToPacketPath,
        Self::TableInconsistent,
        Self::SocketLoopbackSource,
        Self::RejectedUndefinedPort,
        Self::DroppedUnusedAddress,
        Self::DroppedSourceRange,
        Self::SocketUdpLeftToPacketPath,
    ];

    /// The reason's name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotOurs => "not_ours",
            Self::Opened => "opened",
            Self::RejectedNoEndpoint => "rejected_no_endpoint",
            Self::DroppedNoLocalEndpoint => "dropped_no_local_endpoint",
            Self::MidFlowWithoutRecord => "mid_flow_without_record",
            Self::FlowTableFull => "flow_table_full",
            Self::SnatPortsExhausted => "snat_ports_exhausted",
            Self::SnatNoAddress => "snat_no_address",
            Self::FragmentWithoutFirst => "fragment_without_first",
            Self::Unparsable => "unparsable",
            Self::WindowUnstable => "window_unstable",
            Self::HostSocket => "host_socket",
            Self::SocketStorageExhausted => "socket_storage_exhausted",
            Self::SocketAmbiguous => "socket_ambiguous",
            Self::SocketClientUnknown => "socket_client_unknown",
            Self::SocketDropLeftToPacketPath => "socket_drop_left_to_packet_path",
            Self::MovedFromGoneBackend => "moved_from_gone_backend",
            Self::Rebalanced => "rebalanced",
            Self::RewriteFailed => "rewrite_failed",
            Self::IcmpErrorTranslated => "icmp_error_translated",
            Self::SocketRejectLeftToPacketPath => "socket_reject_left_to_packet_path",
            Self::TableInconsistent => "table_inconsistent",
            Self::SocketLoopbackSource => "socket_loopback_source",
            Self::RejectedUndefinedPort => "rejected_undefined_port",
            Self::DroppedUnusedAddress => "dropped_unused_address",
            Self::DroppedSourceRange => "dropped_source_range",
            Self::SocketUdpLeftToPacketPath => "socket_udp_left_to_packet_path",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_listed_in_the_order_of_their_numbers() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}

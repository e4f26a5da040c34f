//! The mutants: one condition of the core less, each.

/// One change of the core that a test on the host and a test in the kernel must notice.
pub(super) struct Mutant {
    /// What a failing test is told by.
    pub(super) name: &'static str,
    /// Below `lb-common/src`.
    pub(super) file: &'static str,
    /// What is replaced; it is there once.
    pub(super) text: &'static str,
    /// What it is replaced by.
    pub(super) replacement: &'static str,
    /// The test binary of `tests/tests` to ask, and a part of the tests' names.
    pub(super) kernel: (&'static str, &'static str),
}

const fn mutant(
    name: &'static str,
    file: &'static str,
    text: &'static str,
    replacement: &'static str,
    kernel: (&'static str, &'static str),
) -> Mutant {
    Mutant {
        name,
        file,
        text,
        replacement,
        kernel,
    }
}

/// The packet path's rules in the kernel.
const RULES: &str = "core_rules";
const CLIENTS: &str = "socket_clients";
const DATAGRAMS: &str = "socket_datagrams";

/// All of them.
pub(super) const ALL: &[Mutant] = &[
    mutant(
        "node ports on addresses not chosen for them",
        "balance/mod.rs",
        "if local.flags & crate::table::LocalAddress::NODE_PORTS == 0 {",
        "if local.flags == u32::MAX {",
        (RULES, "node_ports"),
    ),
    mutant(
        "undefined ports of the node's own addresses",
        "balance/mod.rs",
        "    if tables.local_address(to).is_some() {\n        return None;\n    }\n",
        "",
        (RULES, "only_what_opens"),
    ),
    mutant(
        "internal policy",
        "balance/mod.rs",
        "let local = service.flags & ServiceFlags::INTERNAL_LOCAL != 0;",
        "let local = false;",
        (RULES, "internal_policy"),
    ),
    mutant(
        "masquerade under external policy Cluster",
        "balance/mod.rs",
        "return (false, true);",
        "return (false, false);",
        (RULES, "external_policy_cluster"),
    ),
    mutant(
        "pods under external policy Local",
        "balance/mod.rs",
        "Origin::Pod => (false, false),",
        "Origin::Pod => (true, false),",
        (RULES, "external_policy_local"),
    ),
    mutant(
        "clients outside under external policy Local",
        "balance/mod.rs",
        "Origin::Other => (true, false),",
        "Origin::Other => (false, false),",
        (RULES, "external_policy_local"),
    ),
    mutant(
        "pods at a ClusterIP",
        "balance/mod.rs",
        "(config.detects_pods(family_of) && !matches!(origin, Origin::Pod))",
        "config.detects_pods(family_of)",
        (RULES, "a_cluster_ip_masquerades"),
    ),
    mutant(
        "source ranges",
        "balance/mod.rs",
        "if frontend.is_guarded() && !tables.is_in_source_range(&SourceOf::new(id, &asker.source)) {",
        "if false {",
        (RULES, "guarded"),
    ),
    mutant(
        "silence where nobody is here",
        "balance/mod.rs",
        "return if window.drops() {",
        "return if false {",
        (RULES, "nobody_here"),
    ),
    mutant(
        "affinity's timeout",
        "balance/mod.rs",
        "if now.since(entry.last_use) >= Tick::seconds(timeout_seconds) {",
        "if timeout_seconds == 0 {",
        (CLIENTS, "affinity_ends_after"),
    ),
    mutant(
        "affinity to who is gone",
        "balance/mod.rs",
        "backend.service != service || !backend.is_usable() || backend.member & wanted == 0",
        "backend.service != service || wanted == 0",
        (CLIENTS, "affinity_to_a_backend_that_is_gone"),
    ),
    mutant(
        "hairpins of endpoints elsewhere",
        "balance/mod.rs",
        "backend.flags & Backend::LOCAL != 0 && backend.addr == *client",
        "backend.addr == *client",
        (RULES, "reaches_itself"),
    ),
    mutant(
        "segments in mid flow",
        "packet/open.rs",
        "        if !TcpFlags::opens(headers.flags) {\n",
        "        if false {\n",
        (RULES, "only_what_opens"),
    ),
    mutant(
        "sockets of the node",
        "packet/open.rs",
        "&& packet.has_host_socket(&headers.source, &headers.destination)",
        "&& packet.length() == 0",
        (RULES, "a_datagram_for_a_socket"),
    ),
    mutant(
        "segments in mid flow to undefined ports",
        "packet/parse.rs",
        "self.protocol.0 == Protocol::UDP.0 || TcpFlags::opens(self.flags)",
        "self.length != 0",
        (RULES, "only_what_opens"),
    ),
    mutant(
        "hairpins",
        "packet/open.rs",
        "if choice.masquerade || is_hairpin(backend, &headers.source.addr) {",
        "if choice.masquerade {",
        (RULES, "reaches_itself"),
    ),
    mutant(
        "ports of conversations that are over",
        "packet/open.rs",
        "if !is_over {",
        "if is_over || !is_over {",
        (RULES, "half_closed"),
    ),
    mutant(
        "two conversations on one client port",
        "packet/open.rs",
        "if is_taken(world, config, headers, &choice.endpoint) {",
        "if choice.endpoint.port.0 == 0 {",
        (RULES, "two_frontends"),
    ),
    mutant(
        "datagrams to who is gone",
        "packet/ingress.rs",
        "if !backend.is_usable() && !matches!(headers.part, Part::Later) {",
        "if !backend.is_usable() && matches!(headers.part, Part::Later) {",
        (RULES, "datagrams_leave"),
    ),
    mutant(
        "attempts at who is gone",
        "packet/ingress.rs",
        "if !backend.is_usable() || unanswered || flow.is_closing() {",
        "if unanswered || flow.is_closing() {",
        (RULES, "datagrams_leave"),
    ),
    mutant(
        "attempts on the ends of a closing connection",
        "packet/ingress.rs",
        "if !backend.is_usable() || unanswered || flow.is_closing() {",
        "if !backend.is_usable() || unanswered {",
        (RULES, "a_connection_opened"),
    ),
    mutant(
        "replies to a port of the client's own address",
        "packet/ingress.rs",
        "    if flow.state & FlowState::SNAT_PORT_ONLY == 0\n        && nat::replace_destination",
        "    if nat::replace_destination",
        (RULES, "two_frontends"),
    ),
    mutant(
        "clients that talk to the backend themselves",
        "packet/egress.rs",
        "if TcpFlags::opens(headers.flags) && flow.is_closing() {",
        "if TcpFlags::opens(headers.flags) && flow.state == 0 {",
        (RULES, "talks_to_the_backend_itself"),
    ),
    mutant(
        "replies to another port",
        "packet/egress.rs",
        "        if snat::is_snat_port(config, destination.port) {",
        "        if destination.port.0 == 0 {",
        (RULES, "two_frontends"),
    ),
    mutant(
        "ICMP that is no error",
        "packet/icmp.rs",
        "    if !is_error {\n        return None;\n    }\n",
        "    let _ = is_error;\n",
        (RULES, "icmp_that_is_no_error"),
    ),
    mutant(
        "a flow's protocol",
        "flow/find.rs",
        "if !matches || record.protocol() != protocol {",
        "if !matches {",
        ("flow_table", "of_the_other_protocol"),
    ),
    mutant(
        "connections that were reset",
        "flow/mod.rs",
        "const CLOSING: u16 = FlowState::FIN_FORWARD | FlowState::FIN_REPLY | FlowState::RESET;",
        "const CLOSING: u16 = FlowState::FIN_FORWARD | FlowState::FIN_REPLY;",
        (RULES, "a_connection_opened"),
    ),
    mutant(
        "connections that are half closed",
        "flow/mod.rs",
        "(state & FlowState::RESET != 0 || state & CLOSED == CLOSED)",
        "(state & FlowState::RESET != 0 || state & CLOSED != 0)",
        (RULES, "half_closed"),
    ),
    mutant(
        "socket load balancing off",
        "socket/mod.rs",
        "if config.socket_mode == SocketMode::Off as u32 {",
        "if config.socket_mode == u32::MAX {",
        (CLIENTS, "host_only_serves"),
    ),
    mutant(
        "socket load balancing for the host only",
        "socket/mod.rs",
        "if config.socket_mode == SocketMode::HostOnly as u32 && !host {",
        "if config.socket_mode == u32::MAX {",
        (CLIENTS, "host_only_serves"),
    ),
    mutant(
        "node ports on 127.0.0.1 of a pod",
        "socket/mod.rs",
        "            || !client::is_host(config, socket)\n        {",
        "        {",
        ("socket_node_ports", "127_0_0_1"),
    ),
    mutant(
        "sockets bound to loopback",
        "socket/mod.rs",
        "if caller.source.is_loopback() && !choice.endpoint.addr.is_loopback() {",
        "if caller.source.is_loopback() && choice.endpoint.addr.is_loopback() {",
        (CLIENTS, "bound_to_loopback"),
    ),
    mutant(
        "kernels that cannot refuse",
        "socket/mod.rs",
        "            if !socket.kernel_has(Feature::SET_RETVAL) {",
        "            if !socket.kernel_has(0) && socket.kernel_has(0) {",
        ("socket_path", "cannot_refuse"),
    ),
    mutant(
        "the peer of a socket whose connect was refused",
        "socket/mod.rs",
        "            if !socket.is_connected() {\n                forget(tables, socket);\n            }\n",
        "            forget(tables, socket);\n",
        (DATAGRAMS, "a_connect_that_is_refused"),
    ),
    mutant(
        "records of connections that have ended",
        "socket/mod.rs",
        "    let ours = record.backend != BackendId(0)\n        && record.backend_addr",
        "    let ours = record.backend_addr",
        ("socket_path", "disconnected"),
    ),
    mutant(
        "conversations with who is gone",
        "socket/datagram.rs",
        "        && backend.is_usable()\n        && backend.member & wanted != 0\n",
        "        && wanted != 0\n",
        (DATAGRAMS, "moves_to_a_live_backend"),
    ),
    mutant(
        "conversations that are idle",
        "socket/datagram.rs",
        "let idle = now.since(earlier.last_use) >= Tick::seconds(IDLE_SECONDS);",
        "let idle = now.since(earlier.last_use) == u32::MAX;",
        (DATAGRAMS, "until_it_is_idle"),
    ),
    mutant(
        "two services on one backend",
        "socket/conversations.rs",
        "        if now.since(entry.last_use) < idle {\n            return AMBIGUOUS;\n        }\n",
        "",
        (DATAGRAMS, "two_services_on_one_backend"),
    ),
    mutant(
        "kernels that cannot tell the client",
        "socket/client.rs",
        "} else if socket.kernel_has(Feature::NETNS_COOKIE_IN_SOCKOPS) {",
        "} else if affinity {",
        (CLIENTS, "a_kernel_that_cannot_tell"),
    ),
];

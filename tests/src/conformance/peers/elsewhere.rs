//! Cases that are not connections of one node: what proves them, or why they do not apply.

use crate::conformance::deviations::{
    Deviation, KERNEL_ERRORS, KUBERNETES_SERVICE, MAGLEV_DSR, NO_RESET, ODD_REFUSALS,
    PEER_FEATURES, PING,
};

/// Where a case is answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Elsewhere {
    /// By this test.
    Test(&'static str),
    /// Not at all, for this reason.
    Differs(&'static Deviation),
}

use Elsewhere::{Differs, Test};

/// The names of the tests that answer cases.
pub fn tests_elsewhere() -> impl Iterator<Item = (&'static str, &'static str)> {
    ELSEWHERE
        .iter()
        .filter_map(|(id, elsewhere)| match elsewhere {
            Test(name) => Some((*id, *name)),
            Differs(_) => None,
        })
}

/// By id.
pub(super) const ELSEWHERE: &[(&str, Elsewhere)] = &[
    // Cilium.
    (
        "file",
        Test(
            "a_file_that_stops_parsing_keeps_its_last_good_objects_and_is_named_with_line_and_reason",
        ),
    ),
    ("hostport", Differs(&PEER_FEATURES)),
    ("svc-node-exposure", Differs(&PEER_FEATURES)),
    (
        "unit-traffic-policy-flags",
        Test("the_policy_table_of_service_semantics_section_7"),
    ),
    (
        "unit-loadbalancer-externalip",
        Test("an_undefined_port_of_a_cluster_ip_is_refused_to_everybody"),
    ),
    (
        "unit-session-affinity",
        Test("affinity_to_a_backend_that_is_gone_is_forgotten"),
    ),
    (
        "unit-map-error-retry",
        Test("full_tables_refuse_a_service_by_name_and_hurt_no_other"),
    ),
    ("unit-algorithm-explicit-maglev", Differs(&MAGLEV_DSR)),
    (
        "unit-algorithm-default-random",
        Test("every_endpoint_gets_its_share"),
    ),
    ("unit-algorithm-default-maglev", Differs(&MAGLEV_DSR)),
    (
        "unit-nodeport-range",
        Test("port_ranges_are_written_as_for_the_api_server"),
    ),
    (
        "node-address-v4-v6-mix",
        Test("node_ports_are_served_on_every_address_of_this_node_to_pods_and_host"),
    ),
    (
        "node-address-ipv6-skip-link-local",
        Test("node_port_addresses_are_all_primary_or_ranges"),
    ),
    (
        "node-address-allowlist-ipv6",
        Test("node_port_addresses_are_all_primary_or_ranges"),
    ),
    (
        "node-address-allowlist-v4-v6-mix",
        Test("node_port_addresses_are_all_primary_or_ranges"),
    ),
    (
        "node-address-loopback-vip",
        Test("every_address_of_the_node_is_known_as_local_and_only_some_serve"),
    ),
    (
        "device-wildcard-plus-detection",
        Test("devices_are_auto_or_patterns_never_both"),
    ),
    ("packet-xdp-local-backend", Differs(&MAGLEV_DSR)),
    ("packet-xdp-etp-local", Differs(&MAGLEV_DSR)),
    ("packet-xdp-snat-roundtrip", Differs(&MAGLEV_DSR)),
    (
        "packet-snat-lost-reverse-entry",
        Test("a_reply_to_the_snat_end_finds_the_flow"),
    ),
    (
        "packet-snat-lost-forward-entry",
        Test("flows_whose_time_is_over_make_room_with_their_aliases"),
    ),
    (
        "packet-snat-backend-node",
        Test("hooks_that_a_packet_meets_twice_change_it_once"),
    ),
    ("packet-dsr-option-lb", Differs(&MAGLEV_DSR)),
    ("packet-ipip-health-check", Differs(&PEER_FEATURES)),
    ("packet-hybrid-flag", Differs(&MAGLEV_DSR)),
    ("packet-affinity-maglev", Differs(&MAGLEV_DSR)),
    (
        "packet-terminating-backend",
        Test("udp_conversations_stay_with_an_endpoint_that_serves_though_new_ones_avoid_it"),
    ),
    (
        "packet-no-backend-reject",
        Test("a_tcp_client_gets_a_reset_from_the_frontend"),
    ),
    (
        "packet-icmp-error-for-snat",
        Test("an_error_about_a_masqueraded_request_finds_its_client"),
    ),
    (
        "packet-conntrack-tcp-lifetime",
        Test("closed_reset_and_unanswered_flows_make_room"),
    ),
    (
        "packet-conntrack-service-lifetime",
        Test("an_established_connection_stays_with_a_backend_that_is_gone"),
    ),
    // Katran.
    (
        "KAT-B-02",
        Test("a_segment_in_mid_flow_without_a_record_is_left_to_the_stack"),
    ),
    ("KAT-B-04", Differs(&PEER_FEATURES)),
    ("KAT-B-05", Differs(&PEER_FEATURES)),
    (
        "KAT-B-07",
        Test("an_ipv6_rewrite_keeps_checksums_valid_and_can_be_undone"),
    ),
    ("KAT-B-10", Test("an_error_about_a_reply_finds_its_backend")),
    (
        "KAT-B-14",
        Test("all_fragments_of_a_datagram_take_the_way_of_the_first"),
    ),
    ("KAT-B-19", Differs(&PEER_FEATURES)),
    ("KAT-B-20", Test("packets_that_are_not_ours_are_left_alone")),
    ("KAT-B-23", Differs(&KERNEL_ERRORS)),
    (
        "KAT-B-24",
        Test("packets_and_bytes_are_counted_for_the_service"),
    ),
    (
        "KAT-G-02",
        Test("a_udp_client_is_told_that_the_port_is_unreachable"),
    ),
    ("KAT-M-01", Differs(&KERNEL_ERRORS)),
    ("KAT-C-02", Differs(&PEER_FEATURES)),
    ("KAT-C-03", Differs(&PEER_FEATURES)),
    ("KAT-C-07", Differs(&PEER_FEATURES)),
    ("KAT-C-08", Differs(&PEER_FEATURES)),
    ("KAT-C-09", Test("packets_that_are_not_ours_are_left_alone")),
    ("KAT-L-02", Differs(&PEER_FEATURES)),
    ("KAT-L-04", Differs(&PEER_FEATURES)),
    (
        "KAT-U-01",
        Test("a_udp_conversation_moves_at_once_from_a_backend_that_is_gone"),
    ),
    ("KAT-Q-01", Differs(&PEER_FEATURES)),
    ("KAT-Q-02", Differs(&PEER_FEATURES)),
    ("KAT-H-01", Differs(&PEER_FEATURES)),
    ("KAT-R-01", Differs(&MAGLEV_DSR)),
    ("KAT-R-02", Differs(&MAGLEV_DSR)),
    ("KAT-R-04", Differs(&MAGLEV_DSR)),
    ("KAT-R-06", Differs(&MAGLEV_DSR)),
    ("KAT-R-08", Differs(&MAGLEV_DSR)),
    ("KAT-R-11", Differs(&MAGLEV_DSR)),
    ("KAT-R-12", Differs(&MAGLEV_DSR)),
    ("KAT-R-13", Differs(&MAGLEV_DSR)),
    (
        "KAT-A-01",
        Test("bad_objects_are_refused_by_name_and_reason_counted_and_hurt_nothing_else"),
    ),
    // Calico.
    (
        "CAL-N-01",
        Test("pods_on_routed_veths_reach_a_cluster_ip_here_and_on_another_node"),
    ),
    (
        "CAL-N-03",
        Test("outside_client_reaches_a_node_port_with_the_backend_on_another_node"),
    ),
    (
        "CAL-N-07",
        Test("node_addresses_that_come_and_go_are_followed"),
    ),
    ("CAL-N-10", Test("a_retransmitted_syn_keeps_its_backend")),
    (
        "CAL-N-11",
        Test("clients_of_one_port_get_snat_ports_of_their_own"),
    ),
    ("CAL-D-01", Differs(&MAGLEV_DSR)),
    ("CAL-D-02", Differs(&MAGLEV_DSR)),
    ("CAL-A-01", Test("every_endpoint_gets_its_share")),
    (
        "CAL-A-02",
        Test("affinity_to_a_backend_that_is_gone_is_forgotten"),
    ),
    ("CAL-A-03", Test("ipv6_extension_headers_are_stepped_over")),
    ("CAL-F-01", Test("fragmented_udp_crosses_every_path")),
    (
        "CAL-I-01",
        Test("a_frontend_whose_service_is_not_there_is_counted"),
    ),
    (
        "CAL-I-02",
        Test("a_service_without_endpoints_refuses_everybody_at_once"),
    ),
    ("CAL-I-03", Differs(&ODD_REFUSALS)),
    (
        "CAL-I-04",
        Test("a_udp_client_is_told_that_the_port_is_unreachable"),
    ),
    (
        "CAL-I-06",
        Test("errors_and_echoes_that_are_not_ours_are_left_alone"),
    ),
    (
        "CAL-I-08",
        Test("an_icmp_error_that_quotes_a_translated_packet_reaches_the_client"),
    ),
    ("CAL-I-10", Differs(&PING)),
    ("CAL-M-01", Differs(&KERNEL_ERRORS)),
    ("CAL-M-03", Differs(&KERNEL_ERRORS)),
    ("CAL-G-01", Differs(&MAGLEV_DSR)),
    ("CAL-T-04", Differs(&NO_RESET)),
    (
        "CAL-T-05",
        Test(
            "a_flow_table_full_of_live_connections_breaks_none_of_them_and_refuses_newcomers_by_name",
        ),
    ),
    (
        "CAL-P-01",
        Test("host_and_kernel_treat_random_packets_alike"),
    ),
    ("CAL-P-03", Test("ipv6_extension_headers_are_stepped_over")),
    (
        "CAL-P-04",
        Test("host_and_kernel_treat_random_packets_alike"),
    ),
    (
        "CAL-E-01",
        Test("closed_reset_and_unanswered_flows_make_room"),
    ),
    (
        "CAL-E-02",
        Test("datagrams_leave_a_backend_that_is_gone_and_connections_stay"),
    ),
    (
        "CAL-Y-02",
        Test("a_service_recreated_under_another_name_gets_another_id_and_its_frontend_is_replaced"),
    ),
    (
        "CAL-Y-03",
        Test("a_removed_backend_stays_while_flows_use_it_and_its_id_is_not_given_out"),
    ),
    (
        "CAL-Y-05",
        Test("a_family_without_a_cluster_ip_is_not_served_at_all"),
    ),
    (
        "CAL-Y-07",
        Test("node_ports_are_served_on_every_address_of_this_node_to_pods_and_host"),
    ),
    (
        "CAL-Y-08",
        Test("the_next_start_adopts_ids_windows_and_links_and_writes_nothing"),
    ),
    (
        "CAL-Y-12",
        Test("terminating_endpoints_serve_only_while_nobody_is_ready"),
    ),
    ("CAL-Y-13", Test("adopted_ids_are_not_handed_out")),
    ("CAL-Y-14", Differs(&KUBERNETES_SERVICE)),
    (
        "CAL-Y-15",
        Test("nothing_is_deleted_before_the_source_is_complete"),
    ),
    (
        "CAL-Y-19",
        Test("external_policy_local_is_for_clients_outside_and_masquerades_nobody_but_the_node"),
    ),
    (
        "CAL-Y-20",
        Test("a_health_check_node_port_tells_which_nodes_have_endpoints_and_follows_them"),
    ),
    (
        "CAL-V-01",
        Test("a_service_without_endpoints_refuses_everybody_at_once"),
    ),
    (
        "CAL-V-02",
        Test("the_disallowed_get_silence_and_the_allowed_a_refusal_where_nobody_serves"),
    ),
    (
        "CAL-V-05",
        Test("under_continuous_connects_1000_endpoint_changes_send_nobody_to_a_removed_address"),
    ),
    (
        "CAL-V-06",
        Test("an_unconnected_socket_moves_to_a_live_backend_when_its_own_goes"),
    ),
    ("CAL-V-07", Differs(&MAGLEV_DSR)),
    (
        "CAL-V-11",
        Test("an_icmp_error_that_quotes_a_translated_packet_reaches_the_client"),
    ),
    (
        "CAL-V-12",
        Test("outside_client_reaches_a_node_port_with_the_backend_on_another_node"),
    ),
    ("CAL-V-14", Differs(&KERNEL_ERRORS)),
    (
        "CAL-V-16",
        Test("a_hook_that_somebody_detaches_is_named_counted_and_attached_again"),
    ),
    (
        "CAL-V-19",
        Test("of_two_services_on_one_address_the_older_keeps_it_whatever_the_order"),
    ),
    (
        "CAL-V-20",
        Test("source_ranges_decide_who_may_use_a_load_balancer_address"),
    ),
];

//! What a netfilter rule looks at and does, as far as `check` must know it.

/// One expression of a rule. Those that matter to nobody here are left out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Expression {
    /// Looks whether the destination is an address of this machine (`fib daddr type`, `addrtype`).
    DestinationType,
    /// Looks at the destination address.
    DestinationAddress,
    /// Looks at the destination port.
    DestinationPort,
    /// Looks at the packet's mark.
    Mark,
    /// Looks at connection tracking's state.
    State {
        /// One of the states asked for is "invalid".
        invalid: bool,
    },
    /// Looks at something else.
    Match,
    /// Writes the packet's or the connection's mark, or excludes the packet from tracking.
    Remember,
    /// Goes on in another chain.
    Jump(String),
    /// Accepts.
    Accept,
    /// Drops or refuses.
    Drop,
}

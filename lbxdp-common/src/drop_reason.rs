//! Why a packet was not forwarded. Numbers are append-only and never reused: they are the index
//! of the `drops` map, and dashboards keep them.

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $number:literal $text:literal,)+ }) => {
        $(#[$meta])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$doc])* $variant = $number,)+ }

        impl $name {
            /// Every value, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name in metrics and listings.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}
pub(crate) use numbered;

numbered! {
    /// One per-CPU counter in `drops` each.
    DropReason {
        /// A header for a service address is cut short or contradicts itself.
        Malformed = 1 "malformed",
        /// The service has no endpoint anywhere; answered with port unreachable.
        NoEndpoint = 2 "no_endpoint",
        /// There are endpoints, but none that the traffic policy allows.
        NoLocalEndpoint = 3 "no_local_endpoint",
        /// No frontend listens on this port of a service address; a ClusterIP answers with port
        /// unreachable.
        UnknownPort = 4 "unknown_port",
        /// A fragment for a service address whose first one has not passed here.
        Fragment = 5 "fragment",
        /// TTL or hop limit ends here; answered with time exceeded.
        TtlExceeded = 6 "ttl_exceeded",
        /// Larger than the way onwards; answered with fragmentation needed or packet too big.
        TooBig = 7 "too_big",
        /// Every SNAT port towards the backend that was tried is in use.
        SnatPortsExhausted = 8 "snat_ports_exhausted",
        /// The flow table took no new entry.
        FlowTableFull = 9 "flow_table_full",
        /// No route to the next hop, or a route that refuses.
        NoRoute = 10 "no_route",
        /// The chosen slot names no backend.
        BackendMissing = 11 "backend_missing",
        /// Forwarding is switched off on the receiving device.
        ForwardingDisabled = 12 "forwarding_disabled",
        /// A helper refused to change the packet.
        RewriteFailed = 13 "rewrite_failed",
        /// The source is a loopback address (127.0.0.0/8, ::1), which no wire carries.
        LoopbackSource = 14 "loopback_source",
        /// The source is a multicast, broadcast or unspecified address, which nobody sends from.
        MulticastSource = 15 "multicast_source",
        /// The source is a service address: nobody sends from there but its own replies.
        ServiceSource = 16 "service_source",
        /// An echo request to a service address, over the rate at which ICMP is sent.
        IcmpRationed = 17 "icmp_rationed",
        /// A protocol that is not served, for a service address that is not the node's as well.
        UnknownProtocol = 18 "unknown_protocol",
        /// An address of a Service range that no Service has.
        UnknownAddress = 19 "unknown_address",
        /// The client is in none of the Service's source ranges.
        SourceRange = 20 "source_range",
        /// A fragmented SCTP packet whose ports would change: its checksum covers fragments that
        /// have not arrived.
        SctpFragment = 21 "sctp_fragment",
    }
}

/// Entries of the `drops` map: room for reasons to come.
pub const SLOTS: usize = 64;

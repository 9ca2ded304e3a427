//! What the programs did, other than dropping. Append-only like the drop reasons.

use crate::drop_reason::numbered;

numbered! {
    /// One per-CPU counter in `counters` each.
    Counter {
        /// A packet met a live flow.
        FlowHit = 0 "flow_hit",
        /// A flow was created.
        FlowNew = 1 "flow_new",
        /// An entry whose time was over was found and removed.
        FlowExpired = 2 "flow_expired",
        /// The missing half of a flow was put back.
        FlowRestored = 3 "flow_restored",
        /// A half was ended because its other half belongs to another flow by now.
        FlowBroken = 4 "flow_broken",
        /// A source port that would have been kept was changed, because the reply would have
        /// been another flow's.
        PortChanged = 5 "port_changed",
        /// Translated and handed up the stack.
        PassedLocal = 6 "passed_local",
        /// Translated and sent back out of the same device, by XDP or because a pod called itself.
        Transmitted = 7 "transmitted",
        /// Translated and sent out of another device by XDP.
        Redirected = 8 "redirected",
        /// Left as it was for tc ingress to finish.
        Deferred = 9 "deferred",
        /// Translated at tc ingress and sent to its next hop.
        RedirectedNeigh = 10 "redirected_neigh",
        /// A reply that got its frontend's address at tc egress: a local backend's on its way out, or
        /// any on its way to a pod.
        ReplyTranslated = 11 "reply_translated",
        /// A frame for another machine, left alone.
        ForeignMac = 12 "foreign_mac",
        /// An ICMP or ICMPv6 error was sent.
        IcmpSent = 13 "icmp_sent",
        /// An ICMP or ICMPv6 error was due but over the rate.
        IcmpSuppressed = 14 "icmp_suppressed",
        /// An echo request to a service address was answered.
        EchoAnswered = 15 "echo_answered",
        /// An ICMP or ICMPv6 error about a translated packet was translated.
        IcmpTranslated = 16 "icmp_translated",
        /// A later fragment was translated like its first.
        FragmentFollowed = 17 "fragment_followed",
        /// A client came back in time and got the backend it had.
        AffinityKept = 18 "affinity_kept",
        /// A socket on this node was connected to a backend.
        SocketConnected = 19 "socket_connected",
        /// A datagram of an unconnected socket on this node was sent to a backend.
        SocketSent = 20 "socket_sent",
        /// A socket on this node was told that a frontend does not serve it.
        SocketRefused = 21 "socket_refused",
        /// A connected socket was told that its backend does not serve any more.
        SocketStale = 22 "socket_stale",
        /// A flow was created by a TCP or SCTP packet that begins nothing: its state was lost, or was
        /// never here.
        FlowMidstream = 23 "flow_midstream",
        /// A packet met a flow that the stack translates, and was left to it. Counted by each hook
        /// that the packet meets.
        ForeignHit = 24 "foreign_hit",
        /// A packet without a flow, or a call, was left to the stack, because this node is being
        /// taken over or handed over. Packets are counted by each hook that they meet.
        LeftToStack = 25 "left_to_stack",
        /// The link-layer address of an announced address was asked for, and told (ARP or NDP).
        NeighbourTold = 26 "neighbour_told",
        /// A packet of a connection that is unknown here was handed back to the node that had its
        /// announced address before.
        HandedBack = 27 "handed_back",
    }
}

/// Entries of the `counters` map: room for counters to come.
pub const SLOTS: usize = 64;

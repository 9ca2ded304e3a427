//! What the programs do with what no flow of theirs tells about: the one element of `mode`.

use crate::drop_reason::numbered;

numbered! {
    /// Whose new connections are. Flows that exist are translated in every mode.
    Mode {
        /// The programs'.
        Serving = 0 "serving",
        /// The programs', but the agent does not know yet which connections the stack translates
        /// (conntrack, for kube-proxy): packets that begin none, and datagrams, are left to it.
        TakingOver = 1 "taking_over",
        /// The stack's.
        HandingOver = 2 "handing_over",
    }
}

impl Mode {
    /// The mode with this number, for readers of pinned maps.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|mode| *mode as u32 == number)
    }
}

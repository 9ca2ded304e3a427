//! What the programs do with what no flow of theirs tells about: the one element of `mode`.

/// Whose new connections are. Flows that exist are translated in every mode.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The programs'.
    #[default]
    Serving = 0,
    /// The programs', but the agent does not know yet which connections the stack translates
    /// (conntrack, for kube-proxy): packets that begin none, and datagrams, are left to it.
    TakingOver = 1,
    /// The stack's.
    HandingOver = 2,
}

impl Mode {
    /// The mode with this number, for readers of pinned maps.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Serving,
            1 => Self::TakingOver,
            2 => Self::HandingOver,
            _ => return None,
        })
    }

    /// The name in metrics and listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::TakingOver => "taking_over",
            Self::HandingOver => "handing_over",
        }
    }
}

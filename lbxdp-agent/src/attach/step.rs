//! Where a take-over may be cut off. Only the build that stands for the next layout can be told to
//! end at one of these steps, so that tests see that another agent goes on from each.

/// Environment variable that names the step at which to end.
#[cfg(feature = "next-layout")]
const END_AT: &str = "LBXDP_END_AT";

/// A step was reached; the agent ends here as if it were killed, if it was told to.
#[cfg(feature = "next-layout")]
pub(super) fn reached(step: &str) {
    if std::env::var_os(END_AT).is_some_and(|name| name == step) {
        eprintln!("ended at {step}");
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

/// A step was reached.
#[cfg(not(feature = "next-layout"))]
pub(super) const fn reached(_: &str) {}

//! `lbxdp-agent cleanup`.

use std::path::Path;

use crate::cli::output;
use crate::lock::Lock;
use crate::pins;

/// Removes every trace of the agent and says what it removed. Not while it runs: it would put back
/// what is gone.
pub fn cleanup(pin_path: &Path) -> anyhow::Result<()> {
    let _lock = Lock::take(pin_path)?;
    let removed = pins::cleanup(pin_path)?;
    if removed.is_empty() {
        return output::print("nothing to remove");
    }
    for detached in &removed.detached {
        output::print(&format!("detached {detached}"))?;
    }
    for pin in &removed.pins {
        output::print(&format!("removed {}", pin.display()))?;
    }
    Ok(())
}

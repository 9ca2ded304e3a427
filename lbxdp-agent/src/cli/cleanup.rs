//! `lbxdp-agent cleanup`.

use std::path::Path;

use crate::cli::output;
use crate::pins;

/// Removes every trace of the agent and says what it removed.
pub fn cleanup(pin_path: &Path) -> anyhow::Result<()> {
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

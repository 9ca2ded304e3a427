//! The machine that a report is about.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

/// Where a report is from. Unknown is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the first processor.
    pub cpu: String,
    /// Processors.
    pub cpus: usize,
    /// What the kernel does about the processor's faults, by their names.
    pub mitigations: BTreeMap<String, String>,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let release = uname().map(|uname| uname.release().to_string_lossy().into_owned());
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let mut mitigations = BTreeMap::new();
        let faults = fs::read_dir("/sys/devices/system/cpu/vulnerabilities");
        for entry in faults.into_iter().flatten().flatten() {
            let verdict = fs::read_to_string(entry.path()).unwrap_or_default();
            if let Some(what) = verdict.trim().strip_prefix("Mitigation: ") {
                let name = entry.file_name().to_string_lossy().into_owned();
                mitigations.insert(name, what.to_owned());
            }
        }
        Self {
            kernel: release.unwrap_or_default(),
            cpu: model(&cpuinfo).unwrap_or_default().to_owned(),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            mitigations,
        }
    }
}

impl Machine {
    /// Whether ratios measured on `other` mean something here: they depend on the processor and on what
    /// is done about its faults more than on its speed.
    pub fn is_like(&self, other: &Self) -> bool {
        self.cpu == other.cpu && self.cpus == other.cpus && self.mitigations == other.mitigations
    }
}

/// The first `model name` of `/proc/cpuinfo`.
fn model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim())
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, cpu, cpus, mitigations } = self;
        write!(f, "Linux {kernel}, {cpus} x {cpu}; mitigations: ")?;
        for (index, (name, what)) in mitigations.iter().enumerate() {
            write!(f, "{}{name} ({what})", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_alike_whatever_their_kernel() {
        let machine = Machine { cpu: "A".to_owned(), cpus: 2, ..Machine::default() };
        let newer = Machine { kernel: "7.0".to_owned(), ..machine.clone() };
        assert!(machine.is_like(&newer));
        let mitigations = [("spectre_v2".to_owned(), "Retpolines".to_owned())].into();
        assert!(!machine.is_like(&Machine { mitigations, ..machine.clone() }));
        assert!(!machine.is_like(&Machine { cpu: "B".to_owned(), ..machine.clone() }));
    }

    #[test]
    fn the_model_is_that_of_the_first_processor() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 2.50GHz\nmodel name\t: Other\n";
        assert_eq!(model(cpuinfo), Some("Some CPU @ 2.50GHz"));
        assert_eq!(model("processor\t: 0\n"), None);
    }
}

//! What users install: the chart, the flat manifest, alerts and dashboard.

mod chart;
mod manifest;
mod memory;
mod monitoring;
mod settings;

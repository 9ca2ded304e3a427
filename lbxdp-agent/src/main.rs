//! The lbxdp agent: one on each node.

use std::process::ExitCode;

fn main() -> ExitCode {
    lbxdp_agent::cli::main()
}

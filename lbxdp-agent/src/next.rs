//! The agent with the next layout of maps, under a name of its own beside the one that is shipped:
//! tests upgrade to it and go back.

use std::process::ExitCode;

fn main() -> ExitCode {
    lbxdp_agent::cli::main()
}

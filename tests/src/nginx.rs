//! nginx as Debian ships it, with a configuration for one purpose.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::process::Process;
use crate::scratch::Scratch;

const READY_WITHIN: Duration = Duration::from_secs(10);

/// Starts nginx in one process with `http` inside its `http` block, and waits until `ready` holds.
/// `command` runs nginx where it is to run; everything it writes is in `files`.
#[track_caller]
pub fn start(
    mut command: Command,
    files: &Scratch,
    http: &str,
    mut ready: impl FnMut() -> bool,
) -> Process {
    let file = files.join("nginx.conf");
    fs::write(&file, config(files.path(), http)).expect("write the configuration of nginx");
    command.arg("-p").arg(files.path()).arg("-e").arg("stderr").arg("-c").arg(&file);
    let mut process = Process::spawn(&mut command, &files.join("nginx.log"));
    process.wait_ready(READY_WITHIN, |_| ready());
    process
}

/// A configuration with `http` inside its `http` block, for one process that writes in `dir` only.
pub fn config(dir: &Path, http: &str) -> String {
    let dir = dir.display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {dir}/{kind};\n"))
        .collect();
    format!(
        "daemon off;\nmaster_process off;\npid {dir}/pid;\nerror_log stderr;\n\
         events {{\n    worker_connections 4096;\n}}\n\
         http {{\n    access_log off;\n{paths}{http}}}\n"
    )
}

/// A `server` block that answers on `port` of both families as the servers of this crate do.
pub fn answering(name: &str, port: u16) -> String {
    format!(
        "    server {{\n        listen {port};\n        listen [::]:{port} ipv6only=on;\n\
         \x20       location / {{\n            default_type text/plain;\n\
         \x20           return 200 \"name={name} peer=$remote_addr port=$remote_port \
         request=$connection_requests\\n\";\n        }}\n    }}\n"
    )
}

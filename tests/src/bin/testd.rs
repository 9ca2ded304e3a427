//! Test servers and clients as a program, for namespaces, pods and shells.
//!
//! Servers print `ready` once they listen, and run until they are killed; after SIGTERM they finish
//! what has begun. Clients print one JSON object and exit non-zero if anything failed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use lbxdp_tests::traffic::hold::Held;
use lbxdp_tests::traffic::load::Load;
use lbxdp_tests::traffic::socket::{Source, tcp_listener, udp_listener};
use lbxdp_tests::traffic::spread::{Probe, Spread};
use lbxdp_tests::traffic::transfer::Transfer;
use lbxdp_tests::traffic::{echo, ending, http, puppet, resolve, udp};

#[derive(Parser)]
#[command(version, about)]
enum Cli {
    /// HTTP server: `/` says who answers and whom it sees; `/bytes/N`; `POST /upload`.
    Http(Server),
    /// UDP server: answers each datagram with its name, its peer and the payload.
    Udp(Server),
    /// TCP server: says its name and its peer, then echoes.
    TcpEcho(Server),
    /// Does with sockets what standard input says, a line for each call.
    Puppet,
    /// Waits for SIGTERM: what a pod's namespaces are held by.
    Pause,
    /// Load and its outcome as JSON.
    #[command(subcommand)]
    Client(Client),
}

#[derive(Args)]
struct Server {
    /// The name it gives itself.
    #[arg(long)]
    name: String,
    /// Where to listen; `[::]:PORT` takes both families. May be repeated.
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
}

#[derive(Subcommand)]
enum Client {
    /// Many TCP connections; counts them per backend.
    ConnectSpread {
        #[command(flatten)]
        flows: Flows,
        /// What the servers speak.
        #[arg(long, value_enum, default_value = "http")]
        probe: TcpProbe,
    },
    /// Many UDP flows of one datagram; counts them per backend.
    UdpSpread(Flows),
    /// Open connections to `tcp-echo` servers, used from time to time.
    Hold {
        /// Address and port.
        target: SocketAddr,
        /// How many.
        #[arg(long, default_value_t = 10)]
        connections: u16,
        /// From this port upwards; the kernel's choice if 0.
        #[arg(long, default_value_t = 0)]
        first_port: u16,
        /// For how long, in seconds.
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
        /// Between two rounds, in seconds.
        #[arg(long, default_value_t = 0.2)]
        interval: f64,
    },
    /// Bulk both ways, every byte compared.
    Transfer {
        /// Address and port of an `http` server.
        target: SocketAddr,
        /// Bytes each way.
        #[arg(long, default_value_t = 10_000_000)]
        bytes: u64,
        /// At most so many bytes per second.
        #[arg(long)]
        rate: Option<u64>,
        /// Source address.
        #[arg(long)]
        source: Option<IpAddr>,
        /// Source port.
        #[arg(long, default_value_t = 0)]
        source_port: u16,
    },
    /// New connections to an `http` server at a rate and connections that stay, until standard input
    /// ends.
    Load {
        /// Address and port.
        target: SocketAddr,
        /// New connections each second.
        #[arg(long, default_value_t = 100)]
        rate: u32,
        /// Connections that stay.
        #[arg(long, default_value_t = 10)]
        held: u32,
        /// For each step of each request, in milliseconds.
        #[arg(long, default_value_t = 3000)]
        timeout_ms: u64,
    },
    /// The addresses of a name.
    Lookup {
        /// The name, to which /etc/resolv.conf may add domains.
        name: String,
    },
    /// Names through the C library's resolver, as /etc/resolv.conf says.
    Resolve {
        /// Domain of the names.
        domain: String,
        /// What each of them is.
        expected: IpAddr,
        /// How many.
        #[arg(long, default_value_t = 100)]
        count: u32,
        /// Between two of them, in microseconds.
        #[arg(long, default_value_t = 0)]
        pace_us: u64,
    },
}

#[derive(Args)]
struct Flows {
    /// Address and port.
    target: SocketAddr,
    /// How many flows.
    #[arg(long, default_value_t = 100)]
    count: u32,
    /// Source addresses, in turn. May be repeated.
    #[arg(long)]
    source: Vec<IpAddr>,
    /// From this port upwards; the kernel's choice if 0.
    #[arg(long, default_value_t = 0)]
    first_port: u16,
    /// For each step of each flow, in milliseconds.
    #[arg(long, default_value_t = 3000)]
    timeout_ms: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum TcpProbe {
    Http,
    Echo,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse() {
        Cli::Http(server) => serve(server, |address, name| {
            let listener = tcp_listener(address)?;
            Ok(Box::new(move || http::serve(&listener, &name)))
        }),
        Cli::TcpEcho(server) => serve(server, |address, name| {
            let listener = tcp_listener(address)?;
            Ok(Box::new(move || echo::serve(&listener, &name)))
        }),
        Cli::Udp(server) => serve(server, |address, name| {
            let socket = udp_listener(address)?;
            Ok(Box::new(move || udp::serve(&socket, &name)))
        }),
        Cli::Puppet => Ok(puppet::serve(io::stdin().lock(), io::stdout())?),
        Cli::Pause => Ok(ending::block()?.wait().map(drop)?),
        Cli::Client(client) => run_client(client),
    }
}

/// Connections that are idle for longer are cut at the end.
const FINISH_WITHIN: Duration = Duration::from_secs(2);

type Loop = Box<dyn FnOnce() -> io::Result<()> + Send>;

fn serve(
    server: Server,
    open: impl Fn(SocketAddr, String) -> io::Result<Loop>,
) -> anyhow::Result<()> {
    let Server { name, listen } = server;
    let signals = ending::block()?;
    let loops = listen
        .into_iter()
        .map(|address| open(address, name.clone()).with_context(|| format!("listen on {address}")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    println!("ready");
    let (ended, end) = mpsc::channel();
    for serve in loops {
        let ended = ended.clone();
        thread::spawn(move || ended.send(serve()));
    }
    thread::spawn(move || ended.send(signals.wait().map(drop).map_err(io::Error::from)));
    // A server that fails, or SIGTERM.
    end.recv()??;
    ending::finish(FINISH_WITHIN);
    Ok(())
}

fn spread(flows: Flows, probe: Probe) -> anyhow::Result<()> {
    let Flows { target, count, source, first_port, timeout_ms } = flows;
    let spread = Spread {
        sources: source,
        timeout: Duration::from_millis(timeout_ms),
        ..Spread::new(target, probe, count).from_port(first_port)
    };
    let outcome = spread.run();
    println!("{}", serde_json::to_string(&outcome)?);
    if outcome.failed > 0 {
        bail!("{} of {count} flows failed", outcome.failed);
    }
    Ok(())
}

fn run_client(client: Client) -> anyhow::Result<()> {
    match client {
        Client::ConnectSpread { flows, probe } => spread(
            flows,
            match probe {
                TcpProbe::Http => Probe::Http,
                TcpProbe::Echo => Probe::Echo,
            },
        ),
        Client::UdpSpread(flows) => spread(flows, Probe::Udp),
        Client::Hold { target, connections, first_port, seconds, interval } => {
            let mut held = Held::open(target, connections, first_port, Duration::from_secs(3))?;
            let end = Instant::now() + Duration::from_secs_f64(seconds);
            while Instant::now() < end {
                held.ping_all();
                thread::sleep(Duration::from_secs_f64(interval));
            }
            let report = held.report();
            println!("{}", serde_json::to_string(&report)?);
            if !report.broken.is_empty() {
                bail!("{} of {connections} connections broke", report.broken.len());
            }
            Ok(())
        }
        Client::Transfer { target, bytes, rate, source, source_port } => {
            let transfer = Transfer {
                source: Source { addr: source, port: source_port },
                rate,
                ..Transfer::new(target, bytes)
            };
            let report = transfer.run();
            println!("{}", serde_json::to_string(&report)?);
            if !report.errors.is_empty() {
                bail!("{}", report.errors.join("; "));
            }
            Ok(())
        }
        Client::Load { target, rate, held, timeout_ms } => {
            let load = Load { target, rate, held, timeout: Duration::from_millis(timeout_ms) };
            let is_over = AtomicBool::new(false);
            let report = thread::scope(|scope| {
                let load = scope.spawn(|| load.run(&is_over));
                let read = io::copy(&mut io::stdin().lock(), &mut io::sink());
                is_over.store(true, Ordering::Relaxed);
                read.map(|_| load.join())
            })?;
            let Ok(report) = report else { bail!("a thread panicked") };
            println!("{}", serde_json::to_string(&report)?);
            if report.failed + report.lost > 0 {
                bail!("{} requests failed, {} connections lost", report.failed, report.lost);
            }
            Ok(())
        }
        Client::Lookup { name } => {
            println!("{}", serde_json::to_string(&resolve::addresses(&name)?)?);
            Ok(())
        }
        Client::Resolve { domain, expected, count, pace_us } => {
            let pace = Duration::from_micros(pace_us);
            let lookups = resolve::run(&domain, expected, count, pace);
            println!("{}", serde_json::to_string(&lookups)?);
            if lookups.failed > 0 {
                bail!("{} of {count} lookups failed", lookups.failed);
            }
            Ok(())
        }
    }
}

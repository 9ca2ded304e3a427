//! What an agent costs in a large cluster: a release build against a real API server. The figures of
//! `docs/scale.md` are made here.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Args;
use lbxdp_tests::cluster::CLIENT_V4;
use lbxdp_tests::kube::{ControlPlane, binaries, large};
use lbxdp_tests::manifests::node_object;
use lbxdp_tests::{Agent, AgentOptions, Cluster, Spec, sweep};
use serde::Serialize;
use serde_json::Value;

use crate::setup;
use crate::util::{released_agent, step};

/// Options of `cargo xtask scale`.
#[derive(Args)]
pub struct Options {
    /// Services, each with ten endpoints of its own.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=12_000))]
    services: u32,
    /// Changes of one endpoint, one after the other.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..))]
    changes: u32,
    /// Seconds without any change for which the processor's time is measured.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    idle: u64,
    /// Measures this program instead of building one.
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// What came out. Times are in milliseconds, memory in MiB.
#[derive(Debug, Serialize)]
struct Figures {
    services: u32,
    endpoints: u32,
    /// From the agent's start to the last list.
    listed_ms: f64,
    /// From there to the last entry of the maps.
    programmed_ms: f64,
    /// What of that the agent computed and wrote in one go.
    first_reconciliation_ms: f64,
    /// After the first reconciliation, and the largest so far.
    rss_mib: f64,
    peak_rss_mib: f64,
    /// What of it is the agent's own, the rest being the program and maps that are mapped.
    anonymous_mib: f64,
    /// After the changes and the idle time.
    rss_after_mib: f64,
    /// Share of one processor while nothing changes.
    idle_cpu_percent: f64,
    /// Of deciding and comparing everything, as it happens once a minute.
    everything_ms: Option<f64>,
    changes: usize,
    /// In the agent: from the object to the last entry of the maps.
    change_p50_ms: f64,
    change_p99_ms: f64,
    /// From the request to the API server to the last entry of the maps.
    end_to_end_p50_ms: f64,
    end_to_end_p99_ms: f64,
}

/// The command. Leaves nothing behind, like the demo.
pub fn run(options: &Options) -> Result<()> {
    setup::toolchain()?;
    setup::machine()?;
    for program in binaries::CONTROL_PLANE {
        program.find()?;
    }
    let agent = released_agent(options.agent.as_deref())?;
    sweep::stale();
    sweep::on_signal();
    let done = catch_unwind(AssertUnwindSafe(|| measure(options, &agent)));
    sweep::wait_if_stopping();
    sweep::own();
    let figures = done.unwrap_or_else(|_| Err(anyhow!("the measurement panicked")))?;
    match options.json {
        true => println!("{}", serde_json::to_string_pretty(&figures)?),
        false => print(&figures),
    }
    Ok(())
}

fn measure(options: &Options, binary: &Path) -> Result<Figures> {
    let cluster = Cluster::new(&Spec { pods: vec![1], ..Spec::default() });
    let plane = ControlPlane::start(&cluster.client, CLIENT_V4, 1);
    step(&format!("creating {} Services", options.services));
    let objects: Vec<Value> = (0..options.services).flat_map(large::service).collect();
    plane.api().apply(&objects);
    plane.api().apply(&[node_object(cluster.node(0))]);

    step("starting the agent");
    let access = ["--kubeconfig".to_owned(), plane.admin_kubeconfig().display().to_string()];
    let agent_options = AgentOptions {
        do_not_wait: true,
        log_filter: Some("info,lbxdp_agent::agent=debug".to_owned()),
        binary: Some(binary.to_owned()),
        ..AgentOptions::default()
    };
    let started = now();
    let mut agent = Agent::watch(cluster.node(0), &access, agent_options);
    let first = wait_programmed(&agent, 0, "", Duration::from_secs(120))?;
    agent.wait_ready();
    let frontends = agent.status().0["frontends"].as_u64().unwrap_or_default();
    ensure!(frontends > u64::from(options.services), "{frontends} frontends are served");
    let lists = agent.log();
    let listed = lists.lines().filter(|line| line.contains("listed kind=")).filter_map(time_of);
    let listed = listed.fold(f64::MIN, f64::max);
    let pid = agent.process().context("the agent ended")?.pid();
    // What the start has left behind: the state is written, quarantines end.
    thread::sleep(Duration::from_secs(5));
    let [rss, peak, anonymous] = memory(pid)?;

    step(&format!("{} changes", options.changes));
    let (mut costs, mut waits) = (Vec::new(), Vec::new());
    for change in 0..options.changes {
        sweep::wait_if_stopping();
        // Prime to the number of Services: nearly every change is another one's.
        let mut slice = large::service(change * 7_919 % options.services)[1].clone();
        slice["endpoints"].as_array_mut().context("endpoints")?.pop();
        let (offset, asked) = (agent.log().len(), now());
        plane.api().apply(&[slice]);
        let done = wait_programmed(&agent, offset, "touched=1 ", Duration::from_secs(10))?;
        costs.push(done.cost);
        waits.push(done.at - asked);
    }

    step(&format!("{} seconds without a change", options.idle));
    thread::sleep(Duration::from_secs(3));
    let (before, start) = (processor_time(pid)?, Instant::now());
    thread::sleep(Duration::from_secs(options.idle));
    let used = processor_time(pid)? - before;
    let idle_cpu_percent = 100.0 * used / start.elapsed().as_secs_f64();
    let log = agent.log();
    let everything = log.lines().filter(|line| line.contains("compared everything"));
    let everything_ms = everything.filter_map(cost_of).next_back();
    let [rss_after, _, _] = memory(pid)?;

    Ok(Figures {
        services: options.services,
        endpoints: options.services * large::ENDPOINTS,
        listed_ms: 1e3 * (listed - started),
        programmed_ms: 1e3 * (first.at - listed),
        first_reconciliation_ms: first.cost,
        rss_mib: rss,
        peak_rss_mib: peak,
        anonymous_mib: anonymous,
        rss_after_mib: rss_after,
        idle_cpu_percent,
        everything_ms,
        changes: costs.len(),
        change_p50_ms: percentile(&mut costs, 50),
        change_p99_ms: percentile(&mut costs, 99),
        end_to_end_p50_ms: 1e3 * percentile(&mut waits, 50),
        end_to_end_p99_ms: 1e3 * percentile(&mut waits, 99),
    })
}

/// A line about a reconciliation: when it was written, in seconds since 1970, and what it cost, in
/// milliseconds.
struct Programmed {
    at: f64,
    cost: f64,
}

/// Waits for the agent to have programmed something after what its log had, and to have said this of
/// it. A backend that nobody uses goes a second later, which touches no frontend.
fn wait_programmed(
    agent: &Agent,
    offset: usize,
    saying: &str,
    within: Duration,
) -> Result<Programmed> {
    let start = Instant::now();
    loop {
        let log = agent.log();
        let new = log.get(offset..).unwrap_or_default();
        // The last line may be half written.
        let lines = new.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let mut lines = lines.filter(|line| line.contains("programmed planned="));
        if let Some(line) = lines.find(|line| line.contains(saying)) {
            let (at, cost) = (time_of(line), cost_of(line));
            return Ok(Programmed {
                at: at.with_context(|| line.to_owned())?,
                cost: cost.with_context(|| line.to_owned())?,
            });
        }
        if start.elapsed() > within {
            bail!("nothing was programmed within {within:?}");
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The time at the beginning of a line, as `2026-01-02T03:04:05.678901Z`, in seconds since 1970 as
/// far as that is today: times of day are what is compared.
fn time_of(line: &str) -> Option<f64> {
    let time = line.split_once('T')?.1.split_once('Z')?.0;
    let mut parts = time.split(':').map(|part| part.parse::<f64>().ok());
    let [hours, minutes, seconds] = [parts.next()??, parts.next()??, parts.next()??];
    let day = 86_400.0;
    let of_day = hours * 3_600.0 + minutes * 60.0 + seconds;
    let midnight = (now() / day).floor() * day;
    // Written before midnight and read after it.
    Some(if midnight + of_day > now() + 1.0 { midnight - day + of_day } else { midnight + of_day })
}

/// `micros=` of a line, in milliseconds.
fn cost_of(line: &str) -> Option<f64> {
    let rest = line.split_once("micros=")?.1;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse::<f64>().ok().map(|micros| micros / 1e3)
}

/// Resident memory, its largest value, and what of it is no file, in MiB.
fn memory(pid: u32) -> Result<[f64; 3]> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_start_matches(':').trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
    };
    let value = |name: &'static str| of(name).context(name);
    Ok([value("VmRSS")?, value("VmHWM")?, value("RssAnon")?])
}

/// Seconds of processor time, of the program and in the kernel.
fn processor_time(pid: u32) -> Result<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may have spaces; what comes after it does not.
    let rest = stat.rsplit_once(')').context("a process")?.1;
    let field = |n: usize| rest.split_whitespace().nth(n)?.parse::<f64>().ok();
    let (user, system) = (field(11).context("utime")?, field(12).context("stime")?);
    Ok((user + system) / TICKS_PER_SECOND)
}

fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[(values.len() - 1) * percent / 100]
}

fn print(figures: &Figures) {
    let Figures { services, endpoints, .. } = figures;
    println!("{services} Services, {endpoints} endpoints, no two sets alike\n");
    let row = |what: &str, value: String| println!("{what:<58} {value:>10}");
    let ms = |value: f64| format!("{value:.2} ms");
    let mib = |value: f64| format!("{value:.0} MiB");
    row("start to the last list", ms(figures.listed_ms));
    row("last list to all maps", ms(figures.programmed_ms));
    row("  of that computed and written in one go", ms(figures.first_reconciliation_ms));
    row("resident memory after the start", mib(figures.rss_mib));
    row("  of that the agent's own", mib(figures.anonymous_mib));
    row("  largest so far", mib(figures.peak_rss_mib));
    row("resident memory after the changes", mib(figures.rss_after_mib));
    row("processor without changes", format!("{:.2} %", figures.idle_cpu_percent));
    if let Some(everything) = figures.everything_ms {
        row("  deciding and comparing everything, once a minute", ms(everything));
    }
    row("one change in the agent, median", ms(figures.change_p50_ms));
    row("one change in the agent, 99 % within", ms(figures.change_p99_ms));
    row("request to the API server to the maps, median", ms(figures.end_to_end_p50_ms));
    row("request to the API server to the maps, 99 % within", ms(figures.end_to_end_p99_ms));
    println!("\n{} changes", figures.changes);
}

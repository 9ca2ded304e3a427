//! What the XDP program takes for each packet, path by path, by `BPF_PROG_TEST_RUN`.
//!
//! `docs/performance.md` says how, and what came out.

mod case;
mod cases;
mod compare;
mod machine;
mod packet;
mod quiet;
mod report;
mod runner;
mod world;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::programs::ProgramFd;
use lbxdp_bench_ebpf::Choice;
use lbxdp_tests::sweep;

use crate::build_ebpf;
use crate::util::step;
use case::{Before, Case, Subject};
use cases::{Node, Plan};
use quiet::Sample;
use runner::Runner;
use world::World;

pub use compare::Comparison;
pub use packet::{Mac, Packet, Transport};
pub use report::Report;
pub use runner::input;

/// Packets of one run of the control.
const BRACKET: u32 = 4_000;
/// Rounds after which to look whether there are enough quiet samples.
const LOOK: usize = 20;

/// Rounds at least.
const ROUNDS: usize = 100;
/// How long to go on while there are not enough quiet samples.
const PATIENCE: Duration = Duration::from_secs(40);

/// Which cases.
#[derive(Default)]
pub struct Wanted<'a> {
    /// Only cases whose name contains this, and the most important reference programs.
    pub case: Option<&'a str>,
    /// Only the cases that CI looks at.
    pub is_short: bool,
}

impl Wanted<'_> {
    fn choose(&self, plan: &Plan) -> bool {
        (plan.is_short || !self.is_short)
            && self.case.is_none_or(|wanted| plan.name.contains(wanted))
    }
}

/// A case that is ready.
struct Ready {
    case: Case,
    program: ProgramFd,
    /// What is run in front of each sample.
    beside: Option<Case>,
    /// One for each round.
    samples: Vec<Option<Sample>>,
    /// Packets that met their flow.
    hits: u64,
}

/// Measures.
pub fn run(wanted: &Wanted<'_>) -> Result<Report> {
    let object = build_ebpf::run_bench()?;
    let mut plans = cases::plans();
    ensure!(plans.iter().any(|plan| wanted.choose(plan)), "no case has such a name");
    plans.retain(|plan| wanted.choose(plan) || plan.is_ruler());
    step("making nodes, each with an agent");
    let mut nodes = BTreeMap::new();
    // The reference programs are at home on the usual one.
    for node in plans.iter().map(|plan| plan.node).chain([Node::Usual]) {
        if let Entry::Vacant(place) = nodes.entry(node) {
            place.insert(node.make().with_context(|| format!("{node:?}"))?);
        }
    }
    // A thread of its own, because it goes from namespace to namespace and stays on one processor.
    let measured = thread::scope(|scope| {
        scope.spawn(|| measure(Runner::new(&object)?, &plans, &mut nodes)).join()
    });
    measured.unwrap_or_else(|_| Err(anyhow!("the measurement panicked")))
}

fn measure(
    mut runner: Runner,
    plans: &[Plan],
    nodes: &mut BTreeMap<Node, World>,
) -> Result<Report> {
    runner::stay_on_one_processor()?;
    step("filling the flow tables, through the programs");
    cases::serve(&mut runner, usual(nodes)?)?;
    let mut ready = Vec::new();
    for plan in plans {
        sweep::wait_if_stopping();
        ready.push(prepare(plan, &mut runner, nodes).with_context(|| plan.name.clone())?);
    }
    step(&format!("measuring {} cases", ready.len()));
    let control = runner.program(cases::CONTROL)?;
    let started = Instant::now();
    for round in 0.. {
        if round >= ROUNDS && round % LOOK == 0 {
            let floor = floor(&ready);
            let is_enough = |of: &Ready| {
                of.samples.len() >= of.case.limit || quiet::summary(&of.samples, floor).is_ok()
            };
            if ready.iter().all(is_enough) || started.elapsed() > PATIENCE {
                break;
            }
        }
        sweep::wait_if_stopping();
        for of in &mut ready {
            let sample = match round < of.case.limit {
                true => Some(
                    sample(of, &control, &mut runner, nodes)
                        .with_context(|| of.case.name.clone())?,
                ),
                false => None,
            };
            of.samples.push(sample);
        }
    }
    let floor = floor(&ready);
    Ok(Report::new(&ready, floor))
}

fn usual(nodes: &BTreeMap<Node, World>) -> Result<&World> {
    nodes.get(&Node::Usual).context("no usual node")
}

fn floor(ready: &[Ready]) -> f64 {
    let samples = ready.iter().flat_map(|of| of.samples.iter().flatten());
    quiet::floor(samples.flat_map(|sample| [sample.before, sample.after]))
}

/// Makes everything ready for a case, and looks at one packet.
fn prepare(plan: &Plan, runner: &mut Runner, nodes: &mut BTreeMap<Node, World>) -> Result<Ready> {
    let world = nodes.get_mut(&plan.node).context("no such node")?;
    let mut case = plan.make(world)?;
    let program = match case.subject {
        Subject::Lbxdp(_) => {
            case.prepare(runner, world)?;
            world.program.try_clone()?
        }
        Subject::Own(name) => {
            let program = runner.program(name)?;
            case.pass(runner, &program, &world.place)?;
            program
        }
    };
    case.check(runner, &program, &world.place)?;
    let beside = match &case.before {
        Before::Beside(other) => Some((**other).clone()),
        _ => None,
    };
    Ok(Ready { case, program, beside, samples: Vec::new(), hits: 0 })
}

/// Takes one sample and checks it.
fn sample(
    of: &mut Ready,
    control: &ProgramFd,
    runner: &mut Runner,
    nodes: &mut BTreeMap<Node, World>,
) -> Result<Sample> {
    let Ready { case, program, beside, hits, .. } = of;
    let node = match case.subject {
        Subject::Lbxdp(node) => node,
        Subject::Own(_) => Node::Usual,
    };
    let world = nodes.get_mut(&node).context("no such node")?;
    if let Some(other) = beside {
        let config = other.config(other.choice, other.packets)?;
        other.next = runner.run(program, &world.place, &config, other.next)?.next;
    }
    world.moved()?;
    let bracket = case.config(Choice::One, BRACKET)?;
    let config = case.config(case.choice, case.packets)?;
    let before = runner.run(control, &world.place, &bracket, 0)?.ns;
    let run = runner.run(program, &world.place, &config, case.next)?;
    let after = runner.run(control, &world.place, &bracket, 0)?.ns;
    case.next = run.next;
    let moved = world.moved()?;
    *hits += moved.get("flow_hit").copied().unwrap_or_default();
    case.check_sample(run.verdict, &moved)?;
    Ok(Sample { before, ns: run.ns, after })
}

//! What the programs take for each packet, path by path, by `BPF_PROG_TEST_RUN`.

mod case;
mod cases;
mod packet;
mod quiet;
mod runner;
mod world;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;
use lbxdp_bench_ebpf::Choice;
use lbxdp_tests::sweep;

use crate::build_ebpf;
use crate::util::step;
use case::{Case, Subject};
use quiet::Sample;
use runner::Runner;
use world::World;

/// Packets of one run of the control.
const BRACKET: u32 = 4_000;
/// Rounds after which to look whether there are enough quiet samples.
const ROUNDS: usize = 20;

/// Which cases, and for how long.
pub struct Wanted<'a> {
    /// Only cases whose name contains this.
    pub case: Option<&'a str>,
    /// Rounds at least.
    pub rounds: usize,
    /// Seconds of sampling at most, when there are not enough quiet samples.
    pub seconds: u64,
}

/// Measures.
pub fn run(wanted: &Wanted<'_>) -> Result<()> {
    let object = build_ebpf::run_bench()?;
    step("making nodes, each with an agent");
    let mut worlds = cases::worlds()?;
    let mut cases = cases::cases(&worlds)?;
    cases.retain(|case| wanted.case.is_none_or(|wanted| case.name.contains(wanted)));
    ensure!(!cases.is_empty(), "no case has such a name");
    let mut runner = Runner::new(&object)?;
    runner::stay_on_one_processor()?;
    let control = runner.program(cases::CONTROL)?;
    step("filling the flow tables, through the programs");
    let mut programs = Vec::new();
    for case in &mut cases {
        programs.push(prepare(case, &mut runner, &mut worlds).with_context(|| case.name.clone())?);
    }
    step("measuring");
    let mut samples = vec![Vec::new(); cases.len()];
    let deadline = Instant::now() + Duration::from_secs(wanted.seconds);
    for round in 0.. {
        if round >= wanted.rounds && round % ROUNDS == 0 {
            let floor = floor(&samples);
            let enough = |of: &Vec<Sample>| quiet::summary(of, floor).is_ok();
            if samples.iter().all(enough) || Instant::now() > deadline {
                break;
            }
        }
        sweep::wait_if_stopping();
        for ((case, program), samples) in cases.iter_mut().zip(&programs).zip(&mut samples) {
            let sample = sample(case, program, &control, &mut runner, &mut worlds);
            samples.push(sample.with_context(|| case.name.clone())?);
        }
    }
    let floor = floor(&samples);
    println!("control {floor:.1} ns");
    for (case, samples) in cases.iter().zip(&samples) {
        match quiet::summary(samples, floor) {
            Ok(summary) => println!(
                "{:32} {:>28} ns {:>22} x control, {} of {} quiet",
                case.name,
                format!("{:.1}", summary.ns),
                format!("{:.2}", summary.control),
                summary.quiet,
                samples.len()
            ),
            Err(quiet) => println!("{:32} inconclusive: {quiet} quiet samples", case.name),
        }
    }
    Ok(())
}

fn floor(samples: &[Vec<Sample>]) -> f64 {
    quiet::floor(samples.iter().flatten().flat_map(|sample| [sample.before, sample.after]))
}

/// Makes everything ready for a case, and looks at one packet.
fn prepare(case: &mut Case, runner: &mut Runner, worlds: &mut [World]) -> Result<ProgramFd> {
    let (program, place) = match case.subject {
        Subject::Lbxdp(world) => {
            case.prepare(runner, &mut worlds[world])?;
            (worlds[world].program.try_clone()?, &worlds[world].place)
        }
        Subject::Own(name) => (runner.program(name)?, &worlds[cases::USUAL].place),
    };
    case.check(runner, &program, place)?;
    Ok(program)
}

/// Takes one sample and checks it.
fn sample(
    case: &mut Case,
    program: &ProgramFd,
    control: &ProgramFd,
    runner: &mut Runner,
    worlds: &mut [World],
) -> Result<Sample> {
    let world = match case.subject {
        Subject::Lbxdp(world) => world,
        Subject::Own(_) => cases::USUAL,
    };
    let world = &mut worlds[world];
    world.moved()?;
    let bracket = case.config(Choice::One, BRACKET)?;
    let config = case.config(case.choice, case.packets)?;
    let before = runner.run(control, &world.place, &bracket, 0)?.ns;
    let run = runner.run(program, &world.place, &config, case.next)?;
    let after = runner.run(control, &world.place, &bracket, 0)?.ns;
    case.next = run.next;
    let moved = world.moved()?;
    case.check_sample(run.verdict, matches!(case.subject, Subject::Lbxdp(_)).then_some(&moved))?;
    Ok(Sample { before, ns: run.ns, after })
}

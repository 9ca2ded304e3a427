use std::time::Duration;

use super::cluster::{Cluster, EPOCH};
use crate::members::{Devices, Says, Word};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn formed(count: usize, seed: u64) -> Cluster {
    let mut cluster = Cluster::new(count, seed);
    cluster.until("everybody knows everybody", 30 * SECOND, Cluster::is_whole);
    cluster.downs.clear();
    cluster
}

/// From a crash until everybody else knows of it; then the node comes back.
fn crashes(cluster: &mut Cluster, nodes: impl IntoIterator<Item = usize>) -> Vec<Duration> {
    let mut times = Vec::new();
    for (round, node) in nodes.into_iter().enumerate() {
        cluster.downs.clear();
        cluster.crash(node);
        times.push(cluster.until("everybody knows", 5 * SECOND, Cluster::is_whole));
        let gone = super::cluster::name(node);
        assert!(cluster.downs.iter().all(|(_, _, of)| *of == gone), "nobody else");
        cluster.start(node, EPOCH + 1 + round as u64);
        cluster.until("it is back", 30 * SECOND, Cluster::is_whole);
        cluster.pass(500 * MS);
    }
    times.sort();
    times
}

#[test]
fn a_crash_is_known_to_everybody_within_a_second() {
    for (count, rounds) in [(2, 20), (3, 60), (50, 20)] {
        let mut cluster = formed(count, 1);
        let times = crashes(&mut cluster, (0..rounds).map(|round| round % count));
        println!("{count} members: {:?} to {:?}", times[0], times[times.len() - 1]);
        assert!(times[times.len() - 1] <= SECOND, "{count}: {times:?}");
    }
}

#[test]
fn what_a_member_sends_does_not_depend_on_how_many_there_are() {
    for count in [3, 50] {
        let mut cluster = formed(count, 3);
        // Who has never met greets first.
        cluster.pass(10 * SECOND);
        assert_quiet(&mut cluster, count, 10);
    }
}

/// A question and an answer every 50 ms.
fn assert_quiet(cluster: &mut Cluster, count: usize, seconds: u32) {
    cluster.rate(SECOND);
    cluster.pass(seconds * SECOND);
    let (mean, most) = cluster.rate(seconds * SECOND);
    println!("{count} members: {mean:.1} packets/s each, {most:.1} at most");
    assert!((39.0..43.0).contains(&mean), "{count}: {mean}");
}

/// One packet in twenty is lost.
fn assert_lossy(cluster: &mut Cluster, count: usize, seconds: u32) {
    cluster.lost = 50;
    cluster.downs.clear();
    cluster.rate(SECOND);
    cluster.pass(seconds * SECOND);
    let (mean, _) = cluster.rate(seconds * SECOND);
    println!("{count} members, 5 % lost: {mean:.1} packets/s each");
    assert_eq!(cluster.downs, [], "{count}");
    // Suspicions and what refutes them are passed on.
    assert!(mean < 130.0, "{count}: {mean}");
}

#[test]
fn nobody_is_called_down_because_one_packet_in_twenty_is_lost() {
    assert_lossy(&mut formed(3, 4), 3, 300);
    assert_lossy(&mut formed(50, 4), 50, 60);
}

#[test]
fn a_thousand_members_do_what_three_do() {
    let mut cluster = Cluster::acquainted(1_000, 2);
    assert_quiet(&mut cluster, 1_000, 2);
    for (round, node) in [17, 500, 983].into_iter().enumerate() {
        cluster.downs.clear();
        cluster.crash(node);
        let time = cluster
            .until("everybody knows", 5 * SECOND, |cluster| cluster.downs.len() == 999 - round);
        println!("1000 members: {time:?}");
        assert!(time <= SECOND, "{time:?}");
        let gone = super::cluster::name(node);
        assert!(cluster.downs.iter().all(|(_, _, of)| *of == gone), "nobody else");
    }
    assert_lossy(&mut cluster, 1_000, 2);
}

#[test]
fn a_crash_is_noticed_although_packets_are_lost() {
    let mut cluster = formed(50, 6);
    cluster.lost = 50;
    let mut times = Vec::new();
    for node in 0..10 {
        cluster.crash(node);
        times.push(cluster.until("everybody knows", 5 * SECOND, Cluster::is_whole));
    }
    assert!(times.iter().all(|time| *time <= SECOND), "{times:?}");
}

#[test]
fn one_way_between_two_is_no_loss_of_a_member() {
    for count in [3, 50] {
        let mut cluster = formed(count, 7);
        cluster.cut = Box::new(|from, to| (from, to) == (0, 1));
        cluster.pass(60 * SECOND);
        assert_eq!(cluster.downs, [], "{count}");
        assert!(cluster.is_whole());
    }
}

#[test]
fn who_can_only_speak_or_only_hear_is_down_and_drags_nobody_along() {
    type Cut = Box<dyn Fn(usize, usize) -> bool>;
    for count in [3, 10, 50] {
        let deaf: Cut = Box::new(|_, to| to == 0);
        let mute: Cut = Box::new(|from, _| from == 0);
        for (what, cut) in [("deaf", deaf), ("mute", mute)] {
            let mut cluster = formed(count, 8);
            cluster.cut = cut;
            let others =
                |cluster: &Cluster| (1..count).all(|node| !cluster.alive(node).contains(&0));
            let time = cluster.until("the others know", 5 * SECOND, others);
            println!("{count} members, {what}: {time:?}");
            assert!(time <= SECOND, "{count} {what}: {time:?}");
            cluster.pass(5 * SECOND);
            let wrong: Vec<_> = cluster
                .downs
                .iter()
                .filter(|(_, by, of)| *by != 0 && *of != super::cluster::name(0))
                .collect();
            assert!(wrong.is_empty(), "{count} {what}: {wrong:?}");
            assert!(cluster.alive(0).is_empty(), "it answers to nobody, and knows");
            cluster.cut = Box::new(|_, _| false);
            cluster.until("together again", 10 * SECOND, Cluster::is_whole);
        }
    }
}

#[test]
fn a_partition_leaves_each_side_its_own_and_heals() {
    let mut cluster = formed(10, 9);
    cluster.cut = Box::new(|from, to| (from < 3) != (to < 3));
    let sides = |cluster: &Cluster| {
        (0..10).all(|node| {
            let side = if node < 3 { 0..3 } else { 3..10 };
            cluster.alive(node) == side.filter(|other| *other != node).collect()
        })
    };
    let time = cluster.until("each side knows", 5 * SECOND, sides);
    println!("partition of 10: {time:?}");
    assert!(time <= 1_500 * MS, "{time:?}");
    cluster.pass(60 * SECOND);
    assert!(sides(&cluster));
    cluster.cut = Box::new(|_, _| false);
    let time = cluster.until("together again", 10 * SECOND, Cluster::is_whole);
    println!("healed: {time:?}");
}

#[test]
fn an_agent_that_comes_back_at_once_is_not_missed() {
    for count in [3, 50] {
        let mut cluster = formed(count, 10);
        for round in 0..10 {
            cluster.crash(1);
            cluster.pass(100 * MS);
            cluster.start(1, EPOCH + 1 + round);
            cluster.pass(2 * SECOND);
        }
        assert_eq!(cluster.downs, [], "{count}");
        assert!(cluster.is_whole());
    }
}

#[test]
fn an_agent_whose_clock_went_back_is_heard_all_the_same() {
    for count in [2, 3, 50] {
        let mut cluster = formed(count, 11);
        cluster.crash(1);
        cluster.until("it is missed", 5 * SECOND, Cluster::is_whole);
        cluster.start(1, 3);
        cluster.until("it is back", 10 * SECOND, Cluster::is_whole);
        assert!(cluster.swim(1).epoch() > EPOCH);
    }
}

#[test]
fn goodbye_is_known_at_once() {
    let mut cluster = formed(50, 12);
    // Who has never met has to be greeted first.
    cluster.pass(10 * SECOND);
    cluster.leave(7);
    let time = cluster.until("everybody knows", 5 * SECOND, Cluster::is_whole);
    assert!(time <= 300 * MS, "{time:?}");
}

#[test]
fn an_agent_that_slept_calls_nobody_down() {
    let mut cluster = formed(10, 13);
    for time in [200, 350] {
        cluster.sleep(4, time * MS);
        cluster.pass(3 * SECOND);
        assert!(cluster.is_whole());
    }
    assert_eq!(cluster.downs, []);
    // Longer, and it is called down itself, comes back, and has called down nobody.
    cluster.sleep(4, 3 * SECOND);
    cluster.until("it is back", 5 * SECOND, Cluster::is_whole);
    cluster.pass(3 * SECOND);
    let name = super::cluster::name(4);
    assert!(
        !cluster.downs.is_empty()
            && cluster.downs.iter().all(|(_, by, of)| { *by != 4 && *of == name }),
        "{:?}",
        cluster.downs
    );
}

/// Says something of itself, and something else, and nobody misses it meanwhile.
#[test]
fn what_a_node_says_is_known_to_all_within_a_second() {
    for (count, lost) in [(2, 0), (3, 50), (50, 0), (50, 50)] {
        let mut cluster = Cluster::acquainted(count, 11);
        cluster.lost = lost;
        cluster.pass(SECOND);
        let device = Says { devices: Devices::NONE, ..Says::default() };
        for says in [device, Says::default(), Says { is_leaving: true, ..device }] {
            cluster.say(1, says);
            let time = cluster.until("all know", SECOND, |cluster| {
                let others = cluster.running().into_iter().filter(|node| *node != 1);
                others.into_iter().all(|node| cluster.seen(node, 1).unwrap().says == says)
            });
            println!("{count} members, {lost} of 1,000 packets lost: known after {time:?}");
        }
        cluster.pass(2 * SECOND);
        assert!(cluster.is_whole());
        assert!(cluster.downs.is_empty(), "{count} members: {:?}", cluster.downs);
    }
}

/// It says so with the word that it is gone, also to those who heard neither from itself.
#[test]
fn a_goodbye_is_told_from_a_loss() {
    let mut cluster = Cluster::acquainted(20, 12);
    cluster.leave(7);
    cluster.crash(8);
    cluster.until("both are missed", 2 * SECOND, Cluster::is_whole);
    for node in cluster.running() {
        let [left, lost] = [7, 8].map(|other| cluster.seen(node, other).unwrap());
        assert_eq!((left.word, lost.word), (Word::Down, Word::Down));
        assert!(left.says.is_leaving && !lost.says.is_leaving, "{node}");
    }
}

/// Foca forgets whom it suspects when it begins another life.
#[test]
fn who_has_something_to_say_misses_others_all_the_same() {
    let mut cluster = Cluster::acquainted(2, 13);
    cluster.crash(1);
    let word = |cluster: &Cluster| cluster.seen(0, 1).unwrap().word;
    cluster.until("it is suspected", SECOND, |it| word(it) == Word::Suspect);
    cluster.say(0, Says { devices: Devices::NONE, ..Says::default() });
    cluster.until("it is missed", SECOND, |it| word(it) == Word::Down);
}

/// What others hear of it when it comes back may be older than what it says by now: a packet waited until
/// the network was there. They answer a life that is over, and must not miss one because of that.
#[test]
fn who_is_spoken_to_by_an_old_name_answers() {
    let mut cluster = Cluster::acquainted(3, 14);
    let name = super::cluster::name(0);
    for _ in 0..20 {
        cluster.cut = Box::new(|from, to| from == 0 || to == 0);
        cluster.say(0, Says { devices: Devices::NONE, ..Says::default() });
        cluster.until("it is missed", 2 * SECOND, |it| !it.alive(1).contains(&0));
        cluster.pass(8 * SECOND);
        cluster.cut = Box::new(|_, _| false);
        let back = |it: &Cluster| (1..3).any(|node| it.alive(node).contains(&0));
        while !back(&cluster) {
            cluster.pass(Duration::from_micros(20));
        }
        // Before their first answer.
        cluster.downs.clear();
        cluster.say(0, Says::default());
        let time = cluster.until("all know all", 2 * SECOND, Cluster::is_whole);
        println!("all know all after {time:?}");
        cluster.pass(2 * SECOND);
        let missed: Vec<_> = cluster.downs.iter().filter(|(_, _, of)| *of == name).collect();
        assert!(missed.is_empty(), "{missed:?}");
    }
}

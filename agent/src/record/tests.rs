use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;

use super::*;

fn event(text: &str) -> Event {
    Event { workload: "bot".into(), session_id: "s1".into(), ..Event::daemon(text) }
}

fn small(dir: &Path) -> RecordSettings {
    RecordSettings { segment_bytes: 4096, ..RecordSettings::new(dir) }
}

fn texts(dir: &Path) -> Vec<String> {
    read::events(dir)
        .unwrap()
        .map(|event| match &event.unwrap().event.body {
            EventBody::Daemon { what } => what.clone(),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn fill(recorder: &Recorder, range: std::ops::Range<u64>) {
    for n in range {
        recorder.append(event(&format!("event {n}"))).unwrap();
    }
}

/// Waits for the background to have sealed every full segment.
fn settle(dir: &Path) {
    for _ in 0..2000 {
        let names = open::names(dir).unwrap();
        if names.iter().filter(|n| n.ends_with(".tail")).count() == 1 && !names.iter().any(|n| n.ends_with(".new")) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("segments were not sealed: {:?}", open::names(dir));
}

/// A closed log of `count` events in segments of 4 KiB.
fn log(dir: &Path, count: u64) {
    let recorder = Recorder::open(&small(dir)).unwrap();
    fill(&recorder, 1..count + 1);
    settle(dir);
    recorder.close().unwrap();
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for name in open::names(from).unwrap() {
        fs::copy(from.join(&name), to.path().join(&name)).unwrap();
    }
    to
}

#[test]
fn what_is_appended_is_read_back_across_segments_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/record");
    log(&path, 60);
    log(&path, 10);
    let expected: Vec<_> = (1..=60).chain(1..=10).map(|n| format!("event {n}")).collect();
    assert_eq!(texts(&path), expected);
    let report = verify(&path).unwrap();
    assert_eq!(report.problem, None);
    assert_eq!((report.events, report.first_sequence, report.last_sequence), (70, 1, 70));
    assert!(report.segments >= 3, "{report:?}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    for name in open::names(&path).unwrap().iter().filter(|n| *n != "signing.pub") {
        assert_eq!(fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    let from: Vec<_> = read::events_from(&path, 33).unwrap().map(|e| e.unwrap().position.sequence()).collect();
    assert_eq!(from, (33..=70).collect::<Vec<_>>());
    // Times are set by the recorder and readable.
    let first = read::events(&path).unwrap().next().unwrap().unwrap();
    assert!(first.event.timestamp.parse::<Timestamp>().is_ok());
    assert_eq!(first.event.timestamp.len(), 27);
}

#[test]
fn memory_that_was_given_back_holds_what_was_written_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::options().read(true).write(true).create_new(true).open(dir.path().join("tail")).unwrap();
    let length = 4 << 20;
    file.set_len(length as u64).unwrap();
    let mut tail = tail::TailWriter::map(&file, length).unwrap();
    let shared = tail.shared();
    // In kilobytes, as the kernel counts it for this mapping alone.
    let resident = || -> usize {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.contains(dir.path().to_str().unwrap()));
        let line = lines.find(|line| line.starts_with("Rss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let chunk = [b'x'; 1000];
    for at in (0..3 << 20).step_by(chunk.len()) {
        tail.put(at, &chunk);
    }
    let before = resident();
    assert!(before >= 3 << 10, "{before}");
    // Not even what was not synced is lost, nor what shares a page with the end.
    shared.release(0, (3 << 20) - 500);
    assert!(resident() < 64, "{} of {before}", resident());
    tail.put(3 << 20, b"after");
    let mut read = Vec::new();
    (&file).read_to_end(&mut read).unwrap();
    assert!(read[..3 << 20].iter().all(|byte| *byte == b'x'));
    assert_eq!(&read[3 << 20..][..5], b"after");
    // What is prepared is there before it is written to, and holds what it held.
    let before = resident();
    shared.prepare((3 << 20) - (64 << 10), 256 << 10);
    assert!(resident() >= before + 200, "{before}, then {}", resident());
    let mut after = [0; 5];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut after, 3 << 20).unwrap();
    assert_eq!(&after, b"after");
    // Outside of the mapping it does nothing.
    shared.prepare(length, 1);
    shared.prepare(usize::MAX, 2);
    shared.release(length, 1);
    shared.release(usize::MAX, 2);
}

#[test]
fn one_writer_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = Recorder::open(&small(dir.path())).unwrap();
    assert!(matches!(Recorder::open(&small(dir.path())), Err(RecordError::Locked(_))));
    first.close().unwrap();
    assert!(matches!(first.append(event("late")), Err(RecordError::Closed)));
    drop(first);
    Recorder::open(&small(dir.path())).unwrap();
}

#[test]
fn a_reader_goes_on_where_the_writer_is() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(&small(dir.path())).unwrap();
    let mut events = read::events(dir.path()).unwrap();
    assert!(events.next().is_none());
    let mut seen = 0;
    for round in 1..=30 {
        fill(&recorder, 0..round);
        for item in events.by_ref() {
            seen += 1;
            assert_eq!(item.unwrap().position.sequence(), seen);
        }
        assert_eq!(seen, recorder.last().sequence());
        assert_eq!(verify(dir.path()).unwrap().problem, None, "while it is written");
    }
}

#[test]
fn every_changed_byte_is_found() {
    let dir = tempfile::tempdir().unwrap();
    log(dir.path(), 45);
    let whole = copy(dir.path());
    assert_eq!(verify(whole.path()).unwrap().problem, None);
    let mut checked = 0;
    for name in open::names(dir.path()).unwrap() {
        // The private key is not evidence: a wrong one is refused at start. The lock and a prepared segment hold nothing.
        if name == "signing.key" || name == "lock" || name.starts_with("spare.") {
            continue;
        }
        let path = whole.path().join(&name);
        let original = fs::read(&path).unwrap();
        for at in 0..original.len() {
            let mut bytes = original.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            let report = verify(whole.path()).unwrap();
            let problem = report.problem.unwrap_or_else(|| panic!("byte {at} of {name} was not found"));
            if name.ends_with(".tail") || name == "head" {
                assert_eq!(problem.file, name, "byte {at}: {problem:?}");
                assert!(problem.offset <= at as u64, "byte {at}: {problem:?}");
            }
            checked += 1;
        }
        fs::write(&path, &original).unwrap();
    }
    assert!(checked > 4096, "{checked}");
    assert_eq!(verify(whole.path()).unwrap().problem, None);
}

#[test]
fn the_first_bad_record_is_named() {
    let dir = tempfile::tempdir().unwrap();
    log(dir.path(), 5);
    let path = dir.path().join(format::tail_name(1));
    let mut bytes = fs::read(&path).unwrap();
    let third = {
        let mut at = format::HEADER;
        for _ in 0..2 {
            let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            at += format::RECORD + length as usize;
        }
        at
    };
    bytes[third + 60] ^= 1;
    fs::write(&path, bytes).unwrap();
    let report = verify(dir.path()).unwrap();
    assert_eq!(report.events, 2);
    let problem = report.problem.unwrap();
    assert_eq!((problem.file, problem.offset), (format::tail_name(1), third as u64));
}

#[test]
fn missing_reordered_and_renamed_segments_are_found() {
    let dir = tempfile::tempdir().unwrap();
    log(dir.path(), 90);
    let segments: Vec<_> =
        open::names(dir.path()).unwrap().into_iter().filter(|n| format::parse_name(n).is_some()).collect();
    assert!(segments.len() >= 4, "{segments:?}");
    for name in &segments {
        let other = copy(dir.path());
        fs::remove_file(other.path().join(name)).unwrap();
        assert!(verify(other.path()).unwrap().problem.is_some(), "{name} removed");
        assert!(Recorder::open(&small(other.path())).is_err(), "{name} removed, and opened");
    }
    for first in 0..segments.len() - 1 {
        for second in first + 1..segments.len() - 1 {
            let other = copy(dir.path());
            let (a, b) = (other.path().join(&segments[first]), other.path().join(&segments[second]));
            let (x, y) = (fs::read(&a).unwrap(), fs::read(&b).unwrap());
            fs::write(a, y).unwrap();
            fs::write(b, x).unwrap();
            assert!(verify(other.path()).unwrap().problem.is_some(), "{first} and {second} swapped");
        }
    }
    // Renamed beyond the end.
    let other = copy(dir.path());
    let last = segments.last().unwrap();
    fs::rename(other.path().join(last), other.path().join(format::tail_name(9))).unwrap();
    assert!(verify(other.path()).unwrap().problem.is_some());
    // A segment of another log, in its place and well signed by another key.
    let stranger = tempfile::tempdir().unwrap();
    log(stranger.path(), 90);
    let other = copy(dir.path());
    fs::copy(stranger.path().join(&segments[0]), other.path().join(&segments[0])).unwrap();
    assert!(verify(other.path()).unwrap().problem.is_some());
    // All of it, with its key: only the trusted key tells.
    let trusted = PublicKey::read(dir.path()).unwrap();
    assert_eq!(verify(stranger.path()).unwrap().problem, None);
    assert!(verify_with(stranger.path(), Some(trusted), &mut |_| {}).unwrap().problem.is_some());
    // Everything but the keys.
    let other = copy(dir.path());
    for name in segments {
        fs::remove_file(other.path().join(name)).unwrap();
    }
    assert!(verify(other.path()).unwrap().problem.is_some());
    fs::remove_file(other.path().join("head")).unwrap();
    assert!(verify(other.path()).unwrap().problem.is_some());
}

#[test]
fn a_log_cut_at_any_length_is_found() {
    let dir = tempfile::tempdir().unwrap();
    log(dir.path(), 45);
    for name in open::names(dir.path()).unwrap() {
        let Some((_, kind)) = format::parse_name(&name) else { continue };
        let other = copy(dir.path());
        let path = other.path().join(&name);
        let original = fs::read(&path).unwrap();
        let used = original.iter().rposition(|b| *b != 0).unwrap() + 1;
        for length in 0..original.len() {
            fs::write(&path, &original[..length]).unwrap();
            let problem = verify(other.path()).unwrap().problem;
            // Zeros after the last event carry nothing.
            let harmless = kind == format::Kind::Tail && length >= used;
            assert_eq!(problem.is_none(), harmless, "{name} cut to {length} of {used}: {problem:?}");
            // Cut and filled up with zeros again: the head knows better.
            if kind == format::Kind::Tail && length < used {
                let mut padded = original[..length].to_vec();
                padded.resize(original.len(), 0);
                fs::write(&path, &padded).unwrap();
                assert!(verify(other.path()).unwrap().problem.is_some(), "{name} zeroed from {length}");
                if length % 64 == 0 {
                    let before = fs::read(&path).unwrap();
                    assert!(Recorder::open(&small(other.path())).is_err(), "{name} zeroed from {length}, and opened");
                    assert_eq!(fs::read(&path).unwrap(), before, "a damaged log is left as it is");
                }
            }
        }
    }
}

#[test]
fn a_torn_end_is_removed_and_said() {
    let dir = tempfile::tempdir().unwrap();
    log(dir.path(), 5);
    let path = dir.path().join(format::tail_name(1));
    let whole = fs::read(&path).unwrap();
    let end = whole.iter().rposition(|b| *b != 0).unwrap() + 1;
    let last = {
        let mut at = format::HEADER;
        loop {
            let next = at + format::RECORD + u32::from_le_bytes(whole[at..at + 4].try_into().unwrap()) as usize;
            if next >= end {
                break at;
            }
            at = next;
        }
    };
    let record = &whole[last..end];
    // A copy of a record where the next would be: as if killed at each byte of writing it, the length coming last; and
    // as if the host lost pages of it.
    for cut in [5, 30, 36, 40, record.len() - 1, record.len()] {
        let mut torn = whole.clone();
        torn[end..end + cut].copy_from_slice(&record[..cut]);
        if cut % 2 == 0 {
            torn[end..end + 4].fill(0);
        }
        fs::write(&path, &torn).unwrap();
        assert!(verify(dir.path()).unwrap().problem.is_some(), "{cut}");
        let recorder = Recorder::open(&small(dir.path())).unwrap();
        recorder.append(event("after")).unwrap();
        drop(recorder);
        let all = texts(dir.path());
        assert_eq!(all.len(), 7, "{all:?}");
        assert!(all[5].contains("unclean stop") && all[5].contains(&format!("byte {end}")), "{}", all[5]);
        assert_eq!(all[6], "after");
        assert_eq!(verify(dir.path()).unwrap().problem, None);
        // Back to the start for the next cut: the head too.
        fs::remove_dir_all(dir.path()).unwrap();
        log(dir.path(), 5);
        let again = fs::read(&path).unwrap();
        if again[..end] != whole[..end] {
            // Times differ, so hashes do; the record is foreign here, which is as good as torn.
            fs::write(&path, again).unwrap();
            return torn_with_foreign_records(dir.path(), record);
        }
    }
}

fn torn_with_foreign_records(dir: &Path, record: &[u8]) {
    for cut in [5, 30, 36, 40, record.len() - 1, record.len()] {
        let path = dir.join(format::tail_name(1));
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
        let before = texts(dir).len();
        bytes[end..end + cut].copy_from_slice(&record[..cut]);
        if cut % 2 == 0 {
            bytes[end..end + 4].fill(0);
        }
        fs::write(&path, &bytes).unwrap();
        assert!(verify(dir).unwrap().problem.is_some(), "{cut}");
        drop(Recorder::open(&small(dir)).unwrap());
        let all = texts(dir);
        assert_eq!(all.len(), before + 1, "{all:?}");
        assert!(all[before].contains("unclean stop"), "{}", all[before]);
        assert_eq!(verify(dir).unwrap().problem, None);
    }
}

/// Not a test of its own: what `every_acknowledged_event_survives_kill_9` runs and kills.
#[test]
#[ignore = "started by another test"]
fn child_that_appends_until_it_is_killed() {
    use std::io::Write;
    let Some(dir) = std::env::var_os("PORTCULLIS_TEST_RECORD") else { return };
    let recorder = Recorder::open(&RecordSettings { segment_bytes: 64 << 10, ..RecordSettings::new(dir) }).unwrap();
    let writers: Vec<_> = (0..3)
        .map(|_| {
            let recorder = recorder.clone();
            std::thread::spawn(move || {
                while let Ok(position) = recorder.append(event("x")) {
                    io::stderr().write_all(&position.sequence().to_le_bytes()).unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
}

#[test]
fn every_acknowledged_event_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 1..=5usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "record::tests::child_that_appends_until_it_is_killed"])
            .env("PORTCULLIS_TEST_RECORD", dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = child.stderr.take().unwrap();
        let mut word = [0; 8];
        for _ in 0..round * 700 {
            pipe.read_exact(&mut word).unwrap();
            acknowledged.insert(u64::from_le_bytes(word));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut rest = Vec::new();
        pipe.read_to_end(&mut rest).unwrap();
        acknowledged.extend(rest.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap())));

        drop(Recorder::open(&small(dir.path())).unwrap());
        let report = verify(dir.path()).unwrap();
        assert_eq!(report.problem, None);
        assert!(report.last_sequence >= *acknowledged.last().unwrap());
        let found: BTreeSet<_> = read::events(dir.path()).unwrap().map(|e| e.unwrap().position.sequence()).collect();
        assert!(acknowledged.is_subset(&found), "round {round}");
    }
    assert!(acknowledged.len() > 10_000, "{}", acknowledged.len());
}

#[tokio::test]
async fn sync_reaches_the_disk_for_all_who_wait() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(&small(dir.path())).unwrap();
    let mut tasks = Vec::new();
    for n in 0..40 {
        let recorder = recorder.clone();
        tasks.push(tokio::spawn(async move { recorder.append_synced(event(&format!("event {n}"))).await }));
    }
    for task in tasks {
        let position = task.await.unwrap().unwrap();
        let key = PublicKey::read(dir.path()).unwrap();
        let slots = fs::read(dir.path().join("head")).unwrap();
        let head = slots
            .chunks_exact(format::SLOT)
            .filter_map(|slot| format::Head::decode(slot.try_into().unwrap(), key))
            .max_by_key(|head| head.counter)
            .unwrap();
        assert!(head.seq >= position.sequence());
    }
    recorder.sync(recorder.last()).await.unwrap();
}

#[test]
fn a_full_disk_stops_the_record_and_space_starts_it_again() {
    static LEFT: AtomicUsize = AtomicUsize::new(1);
    fn allocate(file: &fs::File, length: u64) -> io::Result<()> {
        if LEFT.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        open::allocate(file, length)
    }
    let dir = tempfile::tempdir().unwrap();
    let settings = RecordSettings { allocate, ..small(dir.path()) };
    let recorder = Recorder::open(&settings).unwrap();
    let mut recorded = 0;
    let error = loop {
        match recorder.append(event("x")) {
            Ok(_) => recorded += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, RecordError::Full), "{error:?}");
    assert!(recorded > 5);
    assert!(matches!(recorder.append(event("x")), Err(RecordError::Full)));
    assert_eq!(texts(dir.path()).len(), recorded, "what was refused is not there");
    LEFT.store(1000, Ordering::SeqCst);
    // A full disk is believed for a second.
    recorder.with_state_for_tests(|state| state.full_until = None);
    recorder.append(event("again")).unwrap();
    assert_eq!(texts(dir.path()).len(), recorded + 1);
    drop(recorder);
    assert_eq!(verify(dir.path()).unwrap().problem, None);
    // And at the very start.
    LEFT.store(0, Ordering::SeqCst);
    let fresh = tempfile::tempdir().unwrap();
    let refused = Recorder::open(&RecordSettings { allocate, ..small(fresh.path()) });
    assert!(matches!(refused, Err(RecordError::Full)));
}

#[test]
fn an_event_larger_than_a_segment_is_refused_and_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(&small(dir.path())).unwrap();
    assert!(matches!(recorder.append(event(&"x".repeat(4096))), Err(RecordError::TooLarge { .. })));
    recorder.append(event(&"x".repeat(3700))).unwrap();
    recorder.append(event(&"y".repeat(3700))).unwrap();
    drop(recorder);
    assert_eq!(texts(dir.path()).len(), 2);
    // Smaller segments were set before: what does not fit the old one goes to a new one.
    let recorder = Recorder::open(&RecordSettings { segment_bytes: 1 << 20, ..small(dir.path()) }).unwrap();
    recorder.append(event(&"z".repeat(100_000))).unwrap();
    drop(recorder);
    assert_eq!(texts(dir.path()).len(), 3);
    assert_eq!(verify(dir.path()).unwrap().problem, None);
}

#[test]
fn retention_removes_the_oldest_and_the_rest_verifies() {
    let dir = tempfile::tempdir().unwrap();
    log(dir.path(), 90);
    let before = read::segment_numbers(dir.path()).unwrap();
    let settings = RecordSettings { max_age: Some(Duration::from_secs(3600)), ..small(dir.path()) };
    let recorder = Recorder::open(&settings).unwrap();
    assert_eq!(recorder.prune(Timestamp::now()).unwrap(), 0);
    let later = Timestamp::now() + Duration::from_secs(7200);
    assert_eq!(recorder.prune(later).unwrap(), before.len() as u64 - 1, "all but the one that is written");
    fill(&recorder, 1..40);
    settle(dir.path());
    drop(recorder);
    let report = verify(dir.path()).unwrap();
    assert_eq!(report.problem, None);
    assert_eq!(report.pruned_through, Some(before.len() as u64 - 1));
    assert!(report.first_sequence > 1);
    assert!(texts(dir.path()).iter().any(|text| text.contains("retention removes segments 1 to")));
    assert!(matches!(read::events_from(dir.path(), 1), Err(RecordError::Pruned { from: 1, .. })));

    // The marker is evidence: without it the start is missing, and it is signed.
    let other = copy(dir.path());
    fs::remove_file(other.path().join("pruned")).unwrap();
    assert!(verify(other.path()).unwrap().problem.is_some());
    let other = copy(dir.path());
    let marker = other.path().join("pruned");
    let original = fs::read(&marker).unwrap();
    for at in 0..original.len() {
        let mut bytes = original.clone();
        bytes[at] ^= 1;
        fs::write(&marker, bytes).unwrap();
        assert!(verify(other.path()).unwrap().problem.is_some(), "byte {at}");
    }
    fs::write(&marker, &original).unwrap();
    // More than what was pruned is missing.
    let first = read::segment_numbers(other.path()).unwrap()[0];
    fs::remove_file(format::Kind::Sealed.path(other.path(), first)).unwrap();
    assert!(verify(other.path()).unwrap().problem.is_some());

    // By size: nothing sealed stays.
    let settings = RecordSettings { max_bytes: Some(1), ..small(dir.path()) };
    drop(Recorder::open(&settings).unwrap());
    assert_eq!(verify(dir.path()).unwrap().problem, None);
}

#[test]
fn a_log_that_is_sealed_and_pruned_while_it_is_verified_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let settings = RecordSettings { max_bytes: Some(16 << 10), ..small(dir.path()) };
    let recorder = Recorder::open(&settings).unwrap();
    let writer = std::thread::spawn({
        let recorder = recorder.clone();
        move || fill(&recorder, 0..6000)
    });
    let mut pruned = 0;
    while !writer.is_finished() || pruned == 0 {
        let report = verify(dir.path()).unwrap();
        assert_eq!(report.problem, None);
        pruned = pruned.max(report.pruned_through.unwrap_or(0));
    }
    writer.join().unwrap();
    settle(dir.path());
    drop(recorder);
    assert_eq!(verify(dir.path()).unwrap().problem, None);
}

#[test]
fn a_kill_between_sealing_or_pruning_and_removing_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    log(dir.path(), 10);
    let plain = fs::read(dir.path().join(format::tail_name(1))).unwrap();
    log(dir.path(), 60);
    // Sealed, but its plain form is still there.
    fs::write(dir.path().join(format::tail_name(1)), &plain).unwrap();
    let count = texts(dir.path()).len();
    drop(Recorder::open(&small(dir.path())).unwrap());
    assert!(!dir.path().join(format::tail_name(1)).exists());
    assert_eq!(texts(dir.path()).len(), count);
    // Marked as pruned, but still there.
    let sealed = fs::read(dir.path().join(format::sealed_name(1))).unwrap();
    let settings = RecordSettings { max_age: Some(Duration::from_secs(1)), ..small(dir.path()) };
    let recorder = Recorder::open(&settings).unwrap();
    recorder.prune(Timestamp::now() + Duration::from_secs(60)).unwrap();
    drop(recorder);
    fs::write(dir.path().join(format::sealed_name(1)), &sealed).unwrap();
    let two = dir.path().join(format::sealed_name(2));
    assert!(!two.exists());
    // Only a whole run up to the marker can be what a kill left.
    assert!(verify(dir.path()).unwrap().problem.is_some());
    drop(Recorder::open(&small(dir.path())).unwrap());
    assert!(!dir.path().join(format::sealed_name(1)).exists());
    assert_eq!(verify(dir.path()).unwrap().problem, None);
}

#[test]
fn a_kill_between_beginning_a_segment_and_its_first_event_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(&small(dir.path())).unwrap();
    fill(&recorder, 1..4);
    recorder.rotate_for_tests();
    drop(recorder);
    for _ in 0..2 {
        assert_eq!(verify(dir.path()).unwrap().problem, None);
        drop(Recorder::open(&small(dir.path())).unwrap());
    }
    let recorder = Recorder::open(&small(dir.path())).unwrap();
    recorder.append(event("more")).unwrap();
    drop(recorder);
    assert_eq!(texts(dir.path()).len(), 4);
    assert_eq!(verify(dir.path()).unwrap().problem, None);
}

#[test]
fn a_wrong_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    log(dir.path(), 3);
    let stranger = tempfile::tempdir().unwrap();
    log(stranger.path(), 3);
    fs::copy(stranger.path().join("signing.key"), dir.path().join("signing.key")).unwrap();
    assert!(matches!(Recorder::open(&small(dir.path())), Err(RecordError::Key(_))));
    fs::remove_file(dir.path().join("signing.key")).unwrap();
    assert!(Recorder::open(&small(dir.path())).is_err(), "a lost key is not replaced in silence");
}

#[tokio::test]
async fn followers_miss_nothing_even_far_behind() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(&RecordSettings { segment_bytes: 64 << 10, ..small(dir.path()) }).unwrap();
    fill(&recorder, 0..3);
    let mut follower = recorder.follow();
    let mut slow = recorder.follow();
    fill(&recorder, 0..5);
    for n in 4..=8 {
        assert_eq!(follower.next().await.unwrap().unwrap().position.sequence(), n);
    }
    // Far beyond what the channel keeps.
    fill(&recorder, 0..5000);
    for n in 9..=5008 {
        let got = follower.next().await.unwrap().unwrap();
        assert_eq!(got.position.sequence(), n);
        assert_eq!(got.event.timestamp.len(), 27);
    }
    let writer = std::thread::spawn({
        let recorder = recorder.clone();
        move || fill(&recorder, 0..5000)
    });
    for n in 5009..=10_008 {
        assert_eq!(follower.next().await.unwrap().unwrap().position.sequence(), n);
    }
    writer.join().unwrap();
    drop(recorder);
    assert!(follower.next().await.is_none());
    // The one who never read gets all of it, from the segments, after the end.
    let mut expected = 4;
    while let Some(event) = slow.next().await {
        assert_eq!(event.unwrap().position.sequence(), expected);
        expected += 1;
    }
    assert_eq!(expected, 10_009);
}

#[tokio::test]
async fn a_follower_is_told_what_retention_took() {
    let dir = tempfile::tempdir().unwrap();
    let settings = RecordSettings { max_age: Some(Duration::from_secs(3600)), ..small(dir.path()) };
    let recorder = Recorder::open(&settings).unwrap();
    let mut follower = recorder.follow();
    fill(&recorder, 0..3000);
    settle(dir.path());
    recorder.prune(Timestamp::now() + Duration::from_secs(7200)).unwrap();
    let Some(Err(RecordError::Pruned { from: 1, .. })) = follower.next().await else {
        panic!("the gap is told");
    };
    let mut last = 0;
    while last < recorder.last().sequence() {
        match follower.next().await.unwrap() {
            Ok(event) => last = event.position.sequence(),
            Err(RecordError::Pruned { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn many_threads_keep_one_order() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(&RecordSettings { segment_bytes: 32 << 10, ..small(dir.path()) }).unwrap();
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let recorder = recorder.clone();
            std::thread::spawn(move || {
                (0..500)
                    .map(|n| (recorder.append(event(&format!("{thread} {n}"))).unwrap(), format!("{thread} {n}")))
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let mut appended: Vec<_> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
    appended.sort();
    drop(recorder);
    assert_eq!(texts(dir.path()), appended.into_iter().map(|(_, text)| text).collect::<Vec<_>>());
    assert_eq!(verify(dir.path()).unwrap().problem, None);
}

#[test]
fn events_of_every_kind_come_back_equal() {
    let process = crate::action::ProcessFacts { pid: 7, uid: 1000, comm: "psql".into(), exe: None };
    let decision = DecisionNote {
        effect: "hold".into(),
        rule: "writes wait".into(),
        reviewers: vec!["bob".into()],
        reason: Some("ok \u{1b}[31m\u{0}".into()),
    };
    let bodies = [
        EventBody::SessionStart {
            intent: Some("fix".into()),
            command: vec!["a b".into()],
            operator: "alice".into(),
            cgroup: u64::MAX,
            ttl_seconds: Some(1),
        },
        EventBody::SessionEnd { why: "exited".into() },
        EventBody::Connect {
            address: "[::1]:5432".into(),
            protocol: None,
            database: Some("shop".into()),
            process: process.clone(),
            decision: decision.clone(),
        },
        EventBody::Disconnect { why: "eof".into(), bytes_in: 1, bytes_out: u64::MAX },
        EventBody::Command {
            seq: 1,
            command: "select '\u{1F600}'".into(),
            hash: "00".into(),
            action: vec![(crate::action::Verb::Read, crate::action::Target::new("public.a"))],
            decision,
            hold: Some("k7q2".into()),
            waited_ms: Some(5),
            prompt_ref: None,
        },
        EventBody::Hold {
            id: "k7q2".into(),
            seq: 1,
            state: "requested".into(),
            command: "x".into(),
            hash: "00".into(),
            rule: "r".into(),
            reviewer: None,
            reason: None,
            estimated_rows: Some(3),
        },
        EventBody::Result {
            seq: 1,
            result: "SELECT 1".into(),
            failed: false,
            columns: ["a", "b"].map(Into::into).into(),
            sample: vec![vec![Some("1".into()), None]],
            rows: 1,
            bytes: 20,
            masked: MaskedNote { count: 1, detectors: vec!["detect:iban".into()] },
            duration_us: 12,
        },
        EventBody::Refused { what: "udp".into(), process },
        EventBody::Daemon { what: "start".into() },
    ];
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(&RecordSettings::new(dir.path())).unwrap();
    for body in &bodies {
        recorder.append(Event { body: body.clone(), tenant: Some("acme".into()), ..event("") }).unwrap();
    }
    drop(recorder);
    let back: Vec<_> = read::events(dir.path()).unwrap().map(|e| Arc::clone(&e.unwrap().event)).collect();
    assert_eq!(back.iter().map(|e| e.body.clone()).collect::<Vec<_>>(), bodies);
}

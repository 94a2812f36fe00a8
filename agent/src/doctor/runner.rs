//! The program of attempts, wherever it runs, and the one loop that drives it.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use super::{
    attempts::{Answer, Target},
    witness::Witness,
};

/// A running program of attempts.
#[derive(Debug)]
pub struct Runner {
    child: Child,
    input: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Runner {
    /// Starts it: the command is the program with its hidden subcommand, in a session or not.
    pub fn start(mut command: Command, target: &Target) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let mut runner = Self { child, input, lines: BufReader::new(output) };
        let target = serde_json::to_string(target)?;
        match runner.ask(&target).as_deref() {
            Ok("ready\n") => Ok(runner),
            Ok(other) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("it began with `{other}`"))),
            Err(_) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the attempts could not be started")),
        }
    }

    /// Runs attempts; returns the numbers of those that reached something or had an effect. `others` tells what anybody
    /// else saw, and is asked after each attempt and at the end.
    pub fn run(
        &mut self,
        witness: &mut Witness,
        numbers: impl IntoIterator<Item = usize>,
        mut others: impl FnMut(&Witness) -> BTreeSet<usize>,
    ) -> io::Result<BTreeSet<usize>> {
        // What was on its way before is not ours.
        witness.settle();
        others(witness);
        let mut reached = BTreeSet::new();
        for number in numbers {
            let port = witness.begin(number);
            let answer: Answer = self.ask(&format!("{number} {port}"))?.parse()?;
            let by_itself = match answer {
                Answer::Done => false,
                Answer::Effect => true,
                Answer::Listens(port) => witness.reaches(port),
            };
            if by_itself {
                reached.insert(number);
            }
            reached.extend(witness.arrived());
            reached.extend(others(witness));
        }
        reached.extend(witness.settle());
        reached.extend(others(witness));
        Ok(reached)
    }

    fn ask(&mut self, line: &str) -> io::Result<String> {
        writeln!(self.input, "{line}")?;
        let mut answer = String::new();
        self.lines.read_line(&mut answer)?;
        if answer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

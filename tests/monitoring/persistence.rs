//! Each Pushgateway that a test, a page or an example starts says where it keeps its groups. Debian's build otherwise loads a file
//! that all gateways of the machine share.

use std::fs;
use std::path::{Path, PathBuf};

use super::support::workspace;

const FLAG: &str = "--persistence.file=";
/// The lines around a start that belong to it.
const LINES: usize = 10;

/// The numbers of the lines that start a Pushgateway.
fn starts(text: &str) -> Vec<usize> {
    // The names of constants with the program.
    let constants = text.lines().filter(|line| line.ends_with(" = \"prometheus-pushgateway\";"));
    let constants = constants.filter_map(|line| line.split_once("const ")?.1.split_once(':')).map(|(name, _)| name);
    let constants: Vec<_> = constants.chain(["PUSHGATEWAY"]).map(|name| format!("({name})")).collect();
    let is_start = |line: &str| {
        let is_argument = line.contains("\"prometheus-pushgateway\"") && !line.contains("const ");
        let is_named = constants.iter().any(|name| line.contains(name.as_str()));
        is_argument
            || is_named && line.contains("Command::new")
            || line.contains("prom/pushgateway")
            || is_command(line)
    };
    text.lines().enumerate().filter(|(_, line)| is_start(line)).map(|(number, _)| number).collect()
}

/// Whether the line of a script or a page is a command that starts the program, with options or in the background.
fn is_command(line: &str) -> bool {
    let words: Vec<_> = line.trim_start_matches(['$', ' ']).split_whitespace().collect();
    let ["pushgateway" | "prometheus-pushgateway", rest @ ..] = &words[..] else { return false };
    rest.first().is_none_or(|word| word.starts_with(['-', '&', '>', '\\']))
}

/// The starts without the option, and the number of all of them.
fn check(text: &str) -> (Vec<usize>, usize) {
    let lines: Vec<_> = text.lines().collect();
    let starts = starts(text);
    let lacks_flag = |start: &usize| {
        let range = start.saturating_sub(LINES)..lines.len().min(start + LINES);
        !lines[range].iter().any(|line| line.contains(FLAG))
    };
    (starts.iter().copied().filter(lacks_flag).collect(), starts.len())
}

/// Adds the files below a path, except for those of builds.
fn text_files(path: &Path, into: &mut Vec<PathBuf>) {
    if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
        fs::read_dir(path).unwrap().for_each(|entry| text_files(&entry.unwrap().path(), into));
    } else if path.is_file() {
        into.push(path.to_owned());
    }
}

#[test]
fn each_started_pushgateway_names_its_persistence_file() {
    let mut files = Vec::new();
    for path in ["README.md", "CONTRIBUTING.md", "benches", "docs", "examples", "src", "tests"] {
        text_files(&workspace().join(path), &mut files);
    }
    let this_file = Path::new(file!()).file_name().unwrap();
    let mut with_starts = 0;
    for file in files.into_iter().filter(|file| file.file_name().unwrap() != this_file) {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let (without, starts) = check(&text);
        assert_eq!(without, Vec::<usize>::new(), "{} starts a Pushgateway without {FLAG}", file.display());
        with_starts += usize::from(starts > 0);
    }
    // A benchmark, two tests, two pages and the compose file.
    assert!(with_starts >= 6, "{with_starts}");
}

#[test]
fn start_without_the_option_is_reported() {
    for start in [
        "prometheus-pushgateway --web.listen-address=127.0.0.1:19091\n",
        "$ pushgateway &\n",
        "    pushgateway \\\n",
        "Command::new(\"prometheus-pushgateway\").spawn()\n",
        "let gateway = Command::new(PUSHGATEWAY);\n",
        "const BINARY: &str = \"prometheus-pushgateway\";\nCommand::new(BINARY)\n",
        "image: prom/pushgateway:v1.11.3\n",
        "gateway = serve(stack, scratch, \"prometheus-pushgateway\")\n",
    ] {
        let (without, starts) = check(start);
        assert_eq!((without.len(), starts), (1, 1), "{start}");
        assert_eq!(check(&format!("{start}{FLAG}\n")), (vec![], 1), "{start}");
        let far = format!("{start}{}{FLAG}\n", "\n".repeat(LINES));
        assert_eq!(check(&far).0.len(), 1, "{start}");
    }
    for other in [
        "apt-get install prometheus prometheus-pushgateway\n",
        "A `prometheus-pushgateway` that you start by hand\n",
        "prometheus-pushgateway is not installed\n",
        "const BINARY: &str = \"prometheus-pushgateway\";\n",
    ] {
        assert_eq!(check(other).1, 0, "{other}");
    }
}

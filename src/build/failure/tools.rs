//! How the tools of app builds say that they failed. Each reader takes the lines that were kept and says nothing where its
//! tool did not speak; the first that speaks is believed, for it knows more than the ones behind it.

use super::Said;
use super::tail::is_telling;
use crate::api::wire::FailureKind;

/// What lines of every tool say when a server is not to be reached, and the word for it.
const UNREACHABLE: [(&str, &str); 14] = [
    ("ENOTFOUND", "ENOTFOUND"),
    ("EAI_AGAIN", "EAI_AGAIN"),
    ("ETIMEDOUT", "ETIMEDOUT"),
    ("ERR_SOCKET_TIMEOUT", "ERR_SOCKET_TIMEOUT"),
    ("ECONNREFUSED", "ECONNREFUSED"),
    ("ECONNRESET", "ECONNRESET"),
    ("ENETUNREACH", "ENETUNREACH"),
    ("EHOSTUNREACH", "EHOSTUNREACH"),
    ("Could not resolve host", "no such host"),
    ("Couldn't resolve host", "no such host"),
    ("Temporary failure in name resolution", "no name server"),
    ("Unknown host", "no such host"),
    ("Failed host lookup", "no such host"),
    ("Network is unreachable", "no network"),
];

/// Lines behind a message, where a tool says no more than one.
const LAST: usize = 5;

type Reader = fn(&[String]) -> Option<Said>;

/// What the lines say; nothing when there are none.
pub(super) fn read(lines: &[String]) -> Option<Said> {
    const READERS: [Reader; 8] = [xcodebuild, npm, pnpm, yarn, pods, gradle, typescript, anything];
    READERS.iter().find_map(|reader| reader(lines))
}

/// The word for what a line says of a server that is not to be reached.
fn unreachable(line: &str) -> Option<&'static str> {
    UNREACHABLE.iter().find(|(sign, _)| line.contains(sign)).map(|(_, word)| *word)
}

/// The host in the first address of a line.
fn host(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("://")?;
    let host = rest.split(['/', ':', ' ', '"', '\'', ',']).next()?;
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    (!host.is_empty()).then_some(host)
}

fn not_reached(what: &str, lines: Vec<String>) -> Option<Said> {
    let word = lines.iter().find_map(|line| unreachable(line))?;
    let told = lines.iter().filter(|line| unreachable(line).is_some());
    let host =
        told.chain(&lines).find_map(|line| host(line)).map_or(String::new(), |host| format!(" at {host}"));
    let message = format!("{what}{host} cannot be reached from the guest ({word})");
    Some(Said { kind: FailureKind::System, message, lines })
}

/// ```text
/// npm error code EAI_AGAIN
/// npm error network request to https://.. failed, reason: ..
/// ```
fn npm(lines: &[String]) -> Option<Said> {
    let spoken = |line: &String| {
        let rest = line.strip_prefix("npm ERR!").or_else(|| line.strip_prefix("npm error"))?.trim();
        let trailer = rest.starts_with("A complete log of this run") || rest.contains("/_logs/");
        (!rest.is_empty() && !trailer).then(|| rest.to_owned())
    };
    let said: Vec<String> = lines.iter().filter_map(spoken).collect();
    let first = said.first()?;
    let code = said.iter().find_map(|line| line.strip_prefix("code ")).unwrap_or_default();
    if unreachable(code).is_some() || code.is_empty() && said.iter().any(|line| unreachable(line).is_some()) {
        return not_reached("the npm registry", said);
    }
    let all = said.join(" ");
    let user = |message: String| Some(Said::by_the_user(message, said.clone()));
    match code {
        "EUSAGE" if all.contains("in sync") || all.contains("lockfileVersion") => user(
            "package.json and its lock file do not fit together: run `npm install` and commit the lock file"
                .into(),
        ),
        "ERESOLVE" => {
            user("npm finds no versions that suit all dependencies of package.json (ERESOLVE)".into())
        }
        "E404" | "ETARGET" => {
            let what = said.iter().find(|line| line.starts_with("404") || line.starts_with("notarget"));
            user(format!("a package is not in the npm registry: {}", what.unwrap_or(first)))
        }
        "E401" | "E403" | "ENEEDAUTH" => user(format!(
            "the npm registry does not let this build in ({code}): is its token among the secrets?"
        )),
        "EINTEGRITY" => user("a package is not the one that the lock file names (EINTEGRITY)".into()),
        "EBADENGINE" => user("a package wants another version of Node.js (EBADENGINE)".into()),
        "ENOSPC" => {
            let message = "the guest's disk is full (ENOSPC)".to_owned();
            Some(Said { kind: FailureKind::System, message, lines: said })
        }
        // A script failed, and what it printed stands before npm's own words.
        "" | "ELIFECYCLE" | "1" => {
            let others: Vec<String> = lines.iter().filter(|line| spoken(line).is_none()).cloned().collect();
            let others = typescript(&others).or_else(|| telling(&others));
            others.or_else(|| user(format!("npm failed: {first}")))
        }
        code => {
            let next = said.iter().find(|line| !line.starts_with("code ") && !line.starts_with("path "));
            user(format!("npm failed with {code}: {}", next.unwrap_or(first)))
        }
    }
}

/// ` ERR_PNPM_OUTDATED_LOCKFILE  Cannot install with "frozen-lockfile" ..`
fn pnpm(lines: &[String]) -> Option<Said> {
    let spoken = |line: &&String| line.trim_start().starts_with("ERR_PNPM_");
    let at = lines.iter().position(|line| spoken(&line))?;
    let said: Vec<String> = lines[at..].iter().filter(|line| !line.trim().is_empty()).cloned().collect();
    let first = lines[at].trim();
    let (code, text) = first.split_once(' ').unwrap_or((first, ""));
    not_reached("the npm registry", said.clone()).or_else(|| {
        let message = match code {
            "ERR_PNPM_OUTDATED_LOCKFILE" => {
                "package.json and pnpm-lock.yaml do not fit together: run `pnpm install` and commit the lock file".into()
            }
            code => format!("pnpm failed with {code}: {}", text.trim()),
        };
        Some(Said::by_the_user(message, said))
    })
}

/// `error Your lockfile needs to be updated ..`, or `➤ YN0028: │ The lockfile would have been modified ..`
fn yarn(lines: &[String]) -> Option<Said> {
    let berry = |line: &str| line.starts_with("➤ YN") && !line.starts_with("➤ YN0000");
    let classic = |line: &str| line.starts_with("error ");
    let is_yarn = lines.iter().any(|line| line.starts_with("➤ YN") || line.starts_with("yarn install v"));
    let said: Vec<String> =
        lines.iter().filter(|line| is_yarn && (berry(line) || classic(line))).cloned().collect();
    let first = said.first()?;
    let text = first.rsplit_once("│ ").map_or(first.trim_start_matches("error "), |(_, text)| text);
    let message = if text.contains("lockfile needs to be updated")
        || text.contains("lockfile would have been modified")
    {
        "package.json and yarn.lock do not fit together: run `yarn install` and commit the lock file".into()
    } else {
        format!("yarn failed: {text}")
    };
    not_reached("the npm registry", said.clone()).or_else(|| Some(Said::by_the_user(message, said)))
}

/// `[!] CocoaPods could not find compatible versions for pod "X":`
fn pods(lines: &[String]) -> Option<Said> {
    let at = lines.iter().position(|line| {
        // Warnings begin so too; they are not what it ended with.
        line.starts_with("[!]")
            && !line.contains("has been deprecated")
            && !line.contains("Please close any current Xcode")
    })?;
    let said: Vec<String> = lines[at..].iter().filter(|line| !line.trim().is_empty()).cloned().collect();
    let message = said[0].trim_start_matches("[!]").trim().to_owned();
    let spoken = not_reached("the server of CocoaPods", said.clone());
    spoken.or_else(|| Some(Said::by_the_user(format!("CocoaPods failed: {message}"), said)))
}

/// ```text
/// FAILURE: Build failed with an exception.
/// * What went wrong:
/// Execution failed for task ':app:compileReleaseKotlin'.
/// > Compilation error. See log for more details
/// * Try:
/// ```
fn gradle(lines: &[String]) -> Option<Said> {
    let at = lines.iter().position(|line| line.trim() == "* What went wrong:")?;
    let wrong = lines[at + 1..].iter().map(|line| line.trim()).take_while(|line| !line.starts_with("* "));
    let wrong: Vec<String> = wrong.filter(|line| !line.is_empty()).map(str::to_owned).collect();
    let compiler = |line: &&String| line.starts_with("e: ") || line.contains(": error:");
    let errors: Vec<String> = lines[..at].iter().filter(compiler).cloned().collect();
    let message = match errors.first() {
        Some(error) => counted(error, errors.len()),
        None => wrong.iter().take(2).map(|line| line.trim_start_matches("> ")).collect::<Vec<_>>().join(" "),
    };
    let said: Vec<String> = errors.into_iter().chain(wrong).collect();
    let spoken = not_reached("a repository that Gradle needs", said.clone());
    spoken.or_else(|| Some(Said::by_the_user(format!("Gradle failed: {message}"), said)))
}

/// `src/app.ts(3,5): error TS2322: ..`, or `src/app.ts:3:5 - error TS2322: ..`
fn typescript(lines: &[String]) -> Option<Said> {
    let error = |line: &&String| line.contains(": error TS") || line.contains(" - error TS");
    let said: Vec<String> = lines.iter().filter(error).cloned().collect();
    let message = counted(said.first()?, said.len());
    Some(Said::by_the_user(message, said))
}

/// ```text
/// /../AppDelegate.swift:12:5: error: cannot find 'x' in scope
/// ** ARCHIVE FAILED **
/// The following build commands failed:
///     SwiftCompile normal arm64 /../AppDelegate.swift (in target 'App' from project 'App')
/// (1 failure)
/// ```
fn xcodebuild(lines: &[String]) -> Option<Said> {
    const ENDS: [&str; 4] =
        ["** ARCHIVE FAILED **", "** EXPORT FAILED **", "** BUILD FAILED **", "** TEST FAILED **"];
    const COMMANDS: &str = "The following build commands failed:";
    let spoke = |line: &String| {
        ENDS.contains(&line.trim()) || line.starts_with(COMMANDS) || line.starts_with("xcodebuild: error:")
    };
    if !lines.iter().any(spoke) {
        return None;
    }
    let mut errors: Vec<String> = Vec::new();
    for line in lines {
        let error = line.contains("error: ") || line.contains("errSec") || line.starts_with("ld: ");
        let error = error || line.starts_with("Undefined symbol");
        if error && !errors.contains(line) {
            errors.push(line.clone());
        }
    }
    let commands = lines.iter().skip_while(|line| !line.starts_with(COMMANDS)).skip(1);
    let commands: Vec<String> = commands
        .take_while(|line| !line.starts_with('(') && !line.is_empty())
        .map(|line| line.trim().to_owned())
        .collect();
    let message = match (errors.iter().find_map(|line| signing(line)), errors.first(), commands.first()) {
        (Some(signing), ..) => {
            return Some(Said {
                kind: FailureKind::Signing,
                message: signing,
                lines: with(errors, commands),
            });
        }
        (None, Some(error), _) => counted(&short(error), errors.len()),
        (None, None, Some(command)) => format!("xcodebuild failed at {command}"),
        (None, None, None) => "xcodebuild failed and gave no error".to_owned(),
    };
    if errors.is_empty() && commands.is_empty() {
        return Some(Said::by_the_user(message, last(lines)));
    }
    Some(Said::by_the_user(message, with(errors, commands)))
}

/// Errors first; of the commands a few, for they say what was done and not what was wrong with it.
fn with(mut errors: Vec<String>, commands: Vec<String>) -> Vec<String> {
    errors.truncate(super::LINES_MAX - LAST);
    errors.extend(commands.into_iter().take(LAST));
    errors
}

/// What a line says of certificates, profiles and keychains.
fn signing(line: &str) -> Option<String> {
    const SIGNS: [&str; 9] = [
        "requires a provisioning profile",
        "provisioning profile",
        "No profiles for",
        "No signing certificate",
        "Signing for ",
        "signing certificate",
        "No Accounts",
        "Code Signing Error",
        "requires a development team",
    ];
    if line.contains("errSecInternalComponent") {
        let why = "codesign may not use the key: its keychain is locked, or has no partition list";
        return Some(format!("{why} (errSecInternalComponent)"));
    }
    SIGNS.iter().any(|sign| line.contains(sign)).then(|| short(line))
}

/// An error with the name of its file instead of the whole path, and without the word.
fn short(line: &str) -> String {
    let line = line.trim_start_matches("xcodebuild: ");
    let Some((place, text)) = line.split_once("error: ") else { return line.to_owned() };
    let place = place.trim().trim_end_matches("fatal").trim().trim_end_matches(':');
    match place.rsplit('/').next().unwrap_or_default() {
        "" => text.to_owned(),
        file => format!("{file}: {text}"),
    }
}

fn counted(first: &str, count: usize) -> String {
    match count.saturating_sub(1) {
        0 => first.to_owned(),
        more => format!("{first} (and {more} more)"),
    }
}

/// Any other tool: the lines that look like an error, else the last ones.
fn anything(lines: &[String]) -> Option<Said> {
    telling(lines).or_else(|| {
        let said = last(lines);
        let message = said.last()?.trim().to_owned();
        Some(Said::by_the_user(message, said))
    })
}

fn telling(lines: &[String]) -> Option<Said> {
    let said: Vec<String> = lines.iter().filter(|line| is_telling(line)).cloned().collect();
    let plain = |line: &&String| {
        let small = line.trim().to_ascii_lowercase();
        small.starts_with("error") || small.starts_with("fatal") || small.contains("error: ")
    };
    let message = said.iter().rfind(plain).or_else(|| said.last())?.trim().to_owned();
    let from = said.len().saturating_sub(2 * LAST);
    let kept = said[from..].to_vec();
    match unreachable(&message) {
        Some(_) => not_reached("a server", vec![message]).map(|reached| Said { lines: kept, ..reached }),
        None => Some(Said::by_the_user(message, kept)),
    }
}

fn last(lines: &[String]) -> Vec<String> {
    let spoken: Vec<&String> = lines.iter().filter(|line| !line.trim().is_empty()).collect();
    spoken[spoken.len().saturating_sub(LAST)..].iter().map(|line| (*line).clone()).collect()
}

#[cfg(test)]
#[path = "tools_tests.rs"]
mod tests;

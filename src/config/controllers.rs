//! `[[controllers]]`: who hands out builds, and how it is spoken to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use config::ValueKind;

use super::Pool;
use super::found::{Refusal, plain, shown_text};
use super::limits as bound;
use super::rules::{self, Folders};
use super::validate;
use super::walk::{Section, Walk};
use crate::ids::PoolName;

/// The pipeline of builds whose controller does not name one: found from their files.
pub const PIPELINE: &str = "auto";

/// Who hands out builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// For people, for metrics and for the journal.
    pub name: String,
    /// Without a slash at its end.
    pub url: String,
    /// A file with the key that every worker of it shares.
    pub api_key_file: Option<PathBuf>,
    /// Builds of it at once: a worker of its own for each.
    pub lanes: u16,
    /// Between two questions for a build.
    pub poll_interval: Duration,
    /// Between two signs of life of a build.
    pub heartbeat_interval: Duration,
    pub pool: Option<String>,
    pub pipeline: String,
}

/// The keys' values where they are not written; `config/default.toml` says them too.
const LANES: u16 = 1;
const POLL_INTERVAL: Duration = Duration::from_secs(10);
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(25);

pub(super) fn controllers(root: &mut Section<'_>, folders: &Folders) -> Option<Vec<Controller>> {
    let Some(elements) = root.elements("controllers") else {
        let refusal = Refusal::says("allowed is a list of tables, each as [[controllers]]");
        root.walk().wrong("controllers", refusal);
        return None;
    };
    if elements.len() > bound::CONTROLLERS_MAX {
        let text = format!("found {} controllers, allowed are {}", elements.len(), bound::CONTROLLERS_MAX);
        root.walk().wrong("controllers", Refusal::says(text));
        return None;
    }
    let mut names = BTreeSet::new();
    // All are read, so that the mistakes of all are told.
    let read: Vec<Option<Controller>> = elements
        .into_iter()
        .map(|(key, element)| {
            let ValueKind::Table(table) = element.kind else {
                root.walk().wrong(&key, Refusal::says("allowed is a table, as [[controllers]]"));
                return None;
            };
            let read = controller(root.walk().section(&key, table), folders)?;
            if !names.insert(read.name.clone()) {
                let text =
                    format!("found {}, which another has already; names must differ", shown_text(&read.name));
                root.walk().wrong(&format!("{key}.name"), Refusal::says(text));
            }
            Some(read)
        })
        .collect();
    read.into_iter().collect()
}

fn controller(mut s: Section<'_>, folders: &Folders) -> Option<Controller> {
    let name = s.text("name", "a name of letters, digits, `-`, `_` and `.`", rules::upload_name);
    let insecure = s.flag_if("insecure_http");
    let plainly = insecure.flatten().unwrap_or(false);
    let url = s.text("url", "an https:// URL, or http:// to loopback", |text| url(text, plainly));
    let api_key_file = validate::path_or_none(&mut s, "api_key_file", folders, true);
    let lanes = s.count_if("lanes", &bound::CONTROLLER_LANES);
    let poll_interval = s.duration_if("poll_interval", &bound::POLL_INTERVAL);
    let heartbeat_interval = s.duration_if("heartbeat_interval", &bound::HEARTBEAT_INTERVAL);
    let pool = s.text_if("pool", "the name of a pool", |text| {
        text.parse::<PoolName>().map(drop).map_err(|_| Refusal::usual())
    });
    let pipeline = s.text_if("pipeline", "the name of a pipeline, or \"auto\"", plain);
    s.end();
    Some(Controller {
        name: name?,
        url: url?.trim_end_matches('/').to_owned(),
        api_key_file: api_key_file?,
        lanes: lanes?.unwrap_or(LANES),
        poll_interval: poll_interval?.unwrap_or(POLL_INTERVAL),
        heartbeat_interval: heartbeat_interval?.unwrap_or(HEARTBEAT_INTERVAL),
        pool: pool?,
        pipeline: pipeline?.unwrap_or_else(|| PIPELINE.into()),
    })
}

/// A pool that a controller's builds are to go to must be there.
pub(super) fn check_pools(
    walk: &mut Walk,
    controllers: Option<&[Controller]>,
    pools: Option<&BTreeMap<PoolName, Pool>>,
) {
    let (Some(controllers), Some(pools)) = (controllers, pools) else { return };
    for (n, controller) in controllers.iter().enumerate() {
        if let Some(pool) =
            controller.pool.as_ref().filter(|pool| !pools.keys().any(|p| p.as_str() == **pool))
        {
            let text = format!("found {}, and there is no such pool", shown_text(pool));
            walk.wrong(&format!("controllers[{n}].pool"), Refusal::says(text));
        }
    }
}

/// Plain HTTP would send the key, the sources and the certificates for everybody to read.
fn url(text: &str, plainly: bool) -> Result<(), Refusal> {
    plain(text)?;
    let url: reqwest::Url = text.parse().map_err(|_| Refusal::usual())?;
    if !url.username().is_empty() || url.password().is_some() {
        // The text is not shown: there is a password in it.
        let says = "found a URL with a user name or password in it, which logs would show";
        return Err(Refusal::says(says).hint("put the key into a file and name it as `api_key_file`"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        let says =
            format!("found {}, and paths are added to it, which `?` and `#` do not let", shown_text(text));
        return Err(Refusal::says(says));
    }
    match url.scheme() {
        "https" => Ok(()),
        "http" if plainly || rules::is_loopback(&url) => Ok(()),
        "http" => {
            let says = format!("found {}, which is plain http to another host", shown_text(text));
            let hint = "write https://, or, in a network that you trust, `insecure_http = true` beside it";
            Err(Refusal::says(says).hint(hint))
        }
        _ => Err(Refusal::usual()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::tests::{Installation, LINUX};

    fn mistakes(text: &str) -> String {
        Installation::new().file("preheat.toml", &format!("{LINUX}{text}")).mistakes()
    }

    #[test]
    fn a_controller_has_defaults_for_all_but_its_name_and_url() {
        let text = format!("{LINUX}[[controllers]]\nname = \"mesh\"\nurl = \"https://c.example.com/\"\n");
        let loaded = Installation::new().file("preheat.toml", &text).load().expect("no mistake");
        let mesh = &loaded.config.controllers[0];
        assert_eq!((mesh.name.as_str(), mesh.url.as_str()), ("mesh", "https://c.example.com"));
        assert_eq!((mesh.lanes, mesh.poll_interval), (1, Duration::from_secs(10)));
        assert_eq!((mesh.pipeline.as_str(), &mesh.api_key_file, &mesh.pool), ("auto", &None, &None));
    }

    #[test]
    fn plain_http_leaves_this_host_only_by_the_explicit_word() {
        let with =
            |url: &str, rest: &str| format!("[[controllers]]\nname = \"mesh\"\nurl = \"{url}\"\n{rest}");
        let text = mistakes(&with("http://10.0.0.5:3000", ""));
        assert!(
            text.contains("plain http to another host") && text.contains("insecure_http = true"),
            "{text}"
        );
        for (url, rest) in [
            ("http://10.0.0.5:3000", "insecure_http = true\n"),
            ("http://127.0.0.1:3000", ""),
            ("http://[::1]:4444", ""),
            ("https://c.example.com", ""),
        ] {
            let text = format!("{LINUX}{}", with(url, rest));
            assert!(Installation::new().file("preheat.toml", &text).load().is_ok(), "{url}");
        }
        for url in ["ftp://x", "https://a:b@c.example.com", "https://c.example.com/?x=1", "nothing"] {
            assert!(mistakes(&with(url, "insecure_http = true\n")).contains("url"), "{url}");
        }
    }

    #[test]
    fn every_mistake_of_every_controller_is_told() {
        let text = mistakes(
            "[[controllers]]\nname = \"a b\"\nurl = \"https://c\"\nlanes = 0\n\
             [[controllers]]\nname = \"x\"\nurl = \"https://c\"\npool = \"mac\"\npol = 1\n\
             [[controllers]]\nname = \"x\"\nurl = \"https://c\"\nheartbeat_interval = \"1h\"\n\
             [[controllers]]\nname = \"y\"\nurl = \"https://c\"\npool = \"mac\"\n\
             [[controllers]]\nname = \"y\"\nurl = \"https://c\"\n",
        );
        for part in [
            "controllers[0].name: found \"a b\"",
            "controllers[0].lanes: found 0, allowed is a whole number from 1 to 64",
            "controllers[1].pol: unknown key",
            "controllers[2].heartbeat_interval: found \"1h\"",
            "controllers[4].name: found \"y\", which another has already",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn a_pool_that_is_not_there_is_a_mistake() {
        let text = mistakes("[[controllers]]\nname = \"x\"\nurl = \"https://c\"\npool = \"mac\"\n");
        assert!(text.contains("controllers[0].pool: found \"mac\", and there is no such pool"), "{text}");
    }
}

//! `preheat config` and `preheat pipelines`, and the configuration for the commands that need it.

use std::path::Path;

use super::args::ConfigCommand;
use super::exit::Exit;
use super::problem::Problem;
use super::text::{clean, table};
use super::{out, parts};
use crate::config::load::Loaded;

/// The configuration; its mistakes, where it has some, are printed.
///
/// # Errors
/// When it has a mistake.
pub fn load(file: Option<&Path>) -> Result<Loaded, Problem> {
    let loaded = parts::load_config(file).map_err(|mistakes| {
        for mistake in &mistakes {
            super::say(&clean(mistake));
        }
        Problem::usage(format!("the configuration has {} mistake(s)", mistakes.len()))
            .hint("`preheat config check` names them; config/default.toml documents every key")
    })?;
    for warning in &loaded.warnings {
        super::say(&clean(&format!("warning: {warning}")));
    }
    Ok(loaded)
}

/// `preheat config ...`
pub fn command(command: &ConfigCommand) -> Result<Exit, Problem> {
    match command {
        ConfigCommand::Check { config } => {
            let loaded = load(config.as_deref())?;
            super::say(&format!("the configuration is right: {} pool(s)", loaded.config.pools.len()));
        }
        ConfigCommand::Show { config } => out(&parts::show_config(&load(config.as_deref())?)),
    }
    Ok(Exit::Success)
}

/// `preheat pipelines`
pub fn pipelines(name: Option<&str>, file: Option<&Path>) -> Result<Exit, Problem> {
    let pipelines = parts::pipelines(&load(file)?);
    let Some(name) = name else {
        let rows: Vec<_> = pipelines.into_iter().map(|p| vec![p.name, p.found, p.about]).collect();
        out(&table(&["PIPELINE", "AUTO FINDS", "WHAT IT BUILDS"], &rows));
        return Ok(Exit::Success);
    };
    let known: Vec<String> = pipelines.iter().map(|p| format!("`{}`", p.name)).collect();
    let Some(pipeline) = pipelines.into_iter().find(|p| p.name == name) else {
        return Err(Problem::usage(format!(
            "there is no pipeline `{}`; there is {}",
            clean(name),
            known.join(", ")
        )));
    };
    out(&pipeline.written);
    Ok(Exit::Success)
}

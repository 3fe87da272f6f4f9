//! `image list`, `image use`, `image rollback`: which generation an image's name means.

use std::time::Duration;

use super::args::ImageCommand;
use super::client::Client;
use super::exit::Exit;
use super::problem::Problem;
use super::text::table;
use super::{out, out_json, say};
use crate::api::wire::{GenerationState, GenerationView, ImageList, ImageView};

/// The daemon lists the host's VMs and writes the choice down before it answers.
const CHOICE_MAX: Duration = Duration::from_secs(60);

/// Facts of a generation that stand in the list, in this order; the rest is in its JSON.
const FACTS_SHOWN: [&str; 3] = ["made", "macos", "xcode"];

/// `preheat image ...`
pub async fn command(client: &Client, command: ImageCommand) -> Result<Exit, Problem> {
    match command {
        ImageCommand::List { json } => list(client, json).await,
        ImageCommand::Use { image: (name, generation), json } => {
            let generation = generation.to_string();
            chosen(client, &["api", "v1", "images", &name, "use", &generation], json).await
        }
        ImageCommand::Rollback { image, json } => {
            chosen(client, &["api", "v1", "images", &image, "rollback"], json).await
        }
    }
}

async fn list(client: &Client, json: bool) -> Result<Exit, Problem> {
    let list: ImageList = client.get(&["api", "v1", "images"], &[]).await?;
    if json {
        out_json(&list)?;
    } else {
        let rows: Vec<_> = list.images.iter().flat_map(rows).collect();
        out(&table(&["IMAGE", "GENERATION", "VM", "STATE", "POOLS", "ABOUT"], &rows));
    }
    Ok(Exit::Success)
}

fn rows(image: &ImageView) -> Vec<Vec<String>> {
    let row = |generation: &GenerationView| {
        let in_use = generation.vm == image.base;
        vec![
            image.name.clone(),
            generation.generation.map_or_else(|| "-".into(), |n| n.to_string()),
            generation.vm.clone(),
            generation.state.as_str().to_owned(),
            if in_use { image.pools.join(",") } else { String::new() },
            about(generation),
        ]
    };
    let mut rows: Vec<_> = image.generations.iter().map(row).collect();
    if !image.generations.iter().any(|generation| generation.vm == image.base) {
        let (name, base, pools) = (image.name.clone(), image.base.clone(), image.pools.join(","));
        rows.push(vec![name, "-".into(), base, "missing".into(), pools, String::new()]);
    }
    rows
}

fn about(generation: &GenerationView) -> String {
    let facts = FACTS_SHOWN.iter().filter_map(|fact| Some((*fact, generation.facts.get(*fact)?)));
    let facts = facts.map(|(fact, value)| format!("{fact} {value}"));
    generation.why.iter().cloned().chain(facts).collect::<Vec<_>>().join(", ")
}

async fn chosen(client: &Client, parts: &[&str], json: bool) -> Result<Exit, Problem> {
    let image: ImageView = client.post(parts, CHOICE_MAX).await?;
    if json {
        out_json(&image)?;
        return Ok(Exit::Success);
    }
    let state = image.generations.iter().find(|generation| generation.vm == image.base);
    let rolls = match (image.pools.is_empty(), state.map(|generation| generation.state)) {
        (true, _) => "no pool has it".to_owned(),
        (false, Some(GenerationState::Current)) => format!("in use by {}", image.pools.join(", ")),
        (false, Some(_) | None) => format!("{} rolls over to it", image.pools.join(", ")),
    };
    say(&format!("image {}: {} from now on; {rolls}", image.name, image.base));
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn each_generation_is_a_row_and_what_is_missing_is_one_too() {
        let generation = |n: u32, state| GenerationView {
            generation: Some(n),
            vm: format!("macos-g{n}"),
            state,
            why: (state == GenerationState::Failed).then(|| "no answer".into()),
            facts: BTreeMap::from([
                ("macos".into(), "26.1".into()),
                ("base".into(), "ghcr.io/x@sha256:1".into()),
            ]),
        };
        let mut image = ImageView {
            name: "macos".into(),
            pools: vec!["xcode".into()],
            base: "macos-g1".into(),
            generations: vec![
                generation(1, GenerationState::Current),
                generation(2, GenerationState::Failed),
            ],
        };
        let lines = |image: &ImageView| rows(image).into_iter().map(|row| row.join("|")).collect::<Vec<_>>();
        assert_eq!(
            lines(&image),
            ["macos|1|macos-g1|current|xcode|macos 26.1", "macos|2|macos-g2|failed||no answer, macos 26.1"]
        );
        image.base = "macos".into();
        assert_eq!(lines(&image)[2], "macos|-|macos|missing|xcode|");
    }
}

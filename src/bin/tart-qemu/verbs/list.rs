//! `list` and `get`.

use serde::Serialize;

use crate::args::{self, Format};
use crate::error::{Failure, Outcome};
use crate::home::Home;
use crate::vm::VmDir;
use crate::{json, oci, table};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    source: &'static str,
    name: String,
    disk: u64,
    size: u64,
    accessed: String,
    running: bool,
    state: &'static str,
    #[serde(skip)]
    text: Vec<String>,
}

fn row(source: &'static str, name: String, vm: &VmDir) -> Outcome<Row> {
    let state = vm.state();
    let (disk, size, accessed) = (vm.disk_bytes()?, vm.allocated_bytes(), vm.accessed());
    Ok(Row {
        text: vec![
            source.to_owned(),
            name.clone(),
            table::bytes(disk),
            table::bytes(size),
            table::ago(accessed),
            state.as_str().to_owned(),
        ],
        source,
        name,
        disk: table::gigabytes(disk),
        size: table::gigabytes(size),
        accessed: table::iso8601(accessed),
        running: state == crate::vm::State::Running,
        state: state.as_str(),
    })
}

pub fn list(home: &Home, args: &args::List) -> Outcome {
    if let Some(source) = &args.source
        && !["local", "oci"].contains(&source.as_str())
    {
        return Err(Failure::usage(
            "list [--source <source>] [--format <format>] [--quiet]",
            format!("'{source}' is not a valid <source>"),
        ));
    }
    let wants = |source: &str| args.source.as_deref().is_none_or(|wanted| wanted == source);
    let mut rows = Vec::new();
    if wants("local") {
        // One that is deleted while we look is simply not in the list.
        rows.extend(home.vms().iter().filter_map(|vm| row("local", vm.name().to_owned(), vm).ok()));
    }
    if wants("oci") {
        rows.extend(oci::cached(home).into_iter().filter_map(|one| row("OCI", one.name, &one.image).ok()));
    }
    if args.quiet {
        rows.iter().for_each(|row| println!("{}", row.name));
        return Ok(());
    }
    match args.format {
        Format::Json => println!("{}", json::pretty(&rows)),
        Format::Text => {
            let titles = ["Source", "Name", "Disk", "Size", "Accessed", "State"];
            let cells: Vec<Vec<String>> = rows.into_iter().map(|row| row.text).collect();
            println!("{}", table::render(&titles, &cells));
        }
    }
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    #[serde(rename = "OS")]
    os: &'static str,
    #[serde(rename = "CPU")]
    cpu: u32,
    memory: u64,
    disk: u64,
    disk_format: String,
    size: String,
    display: String,
    running: bool,
    state: &'static str,
}

pub fn get(home: &Home, name: &str, format: Format) -> Outcome {
    let vm = home.open_vm(name)?;
    let config = vm.config()?;
    let (disk, size, state) = (vm.disk_bytes()?, vm.allocated_bytes(), vm.state());
    let info = Info {
        os: config.os.as_str(),
        cpu: config.cpu_count,
        memory: config.memory_mib(),
        disk: table::gigabytes(disk),
        disk_format: config.disk_format.clone(),
        size: format!("{:.3}", size as f64 / 1e9),
        display: config.display.to_string(),
        running: state == crate::vm::State::Running,
        state: state.as_str(),
    };
    match format {
        Format::Json => println!("{}", json::pretty(&info)),
        Format::Text => {
            let titles = ["OS", "CPU", "Memory", "Disk", "DiskFormat", "Size", "Display", "State"];
            let cells = vec![
                info.os.to_owned(),
                info.cpu.to_string(),
                info.memory.to_string(),
                table::bytes(disk),
                info.disk_format,
                table::bytes(size),
                info.display,
                info.state.to_owned(),
            ];
            println!("{}", table::render(&titles, &[cells]));
        }
    }
    Ok(())
}

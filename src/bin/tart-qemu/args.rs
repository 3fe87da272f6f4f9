//! Tart's command line.

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The version of Tart whose behaviour this is.
pub const TART_VERSION: &str = "2.35.0";

#[derive(Debug, Parser)]
#[command(name = "tart", bin_name = "tart", version = TART_VERSION, about = "Tart's command line on QEMU")]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a VM
    #[command(disable_help_flag = true)]
    Create(Unsupported),
    /// Clone a VM
    Clone(Clone),
    /// Run a VM
    Run(Box<Run>),
    /// Modify VM's configuration
    Set(Set),
    /// Get a VM's configuration
    Get {
        name: String,
        #[arg(long, default_value = "text")]
        format: Format,
    },
    /// List created VMs
    List(List),
    /// Login to a registry
    #[command(disable_help_flag = true)]
    Login(Unsupported),
    /// Logout from a registry
    #[command(disable_help_flag = true)]
    Logout(Unsupported),
    /// Get VM's IP address
    Ip(Ip),
    /// Execute a command in a running VM
    Exec(Exec),
    /// Pull a VM from a registry
    Pull(Pull),
    /// Push a VM to a registry
    #[command(disable_help_flag = true)]
    Push(Unsupported),
    /// Import VM from a compressed .tvm file
    #[command(disable_help_flag = true)]
    Import(Unsupported),
    /// Export VM to a compressed .tvm file
    #[command(disable_help_flag = true)]
    Export(Unsupported),
    /// Prune OCI and IPSW caches or local VMs
    Prune(Prune),
    /// Rename a local VM
    Rename { name: String, new_name: String },
    /// Stop a VM
    Stop {
        name: String,
        #[arg(short, long, default_value_t = 30)]
        timeout: u64,
    },
    /// Delete a VM
    Delete {
        #[arg(required = true)]
        name: Vec<String>,
    },
    /// Get a fully-qualified VM name
    #[command(hide = true)]
    Fqn { name: String },
    /// Suspend a VM
    Suspend { name: String },
    /// Ends a process when its parent has gone; used where the kernel has no such signal.
    #[command(name = "__watch", hide = true)]
    Watch { pid: i32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// A verb of Tart that means nothing here; its arguments are not looked at.
#[derive(Debug, Args)]
pub struct Unsupported {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub _rest: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Clone {
    pub source_name: String,
    pub new_name: String,
    #[arg(long)]
    pub insecure: bool,
    #[arg(long, default_value_t = 4)]
    pub concurrency: u32,
    #[arg(long, hide = true)]
    pub deduplicate: bool,
    #[arg(long)]
    pub stacked: bool,
    #[arg(long, default_value_t = 100)]
    pub prune_limit: u64,
}

#[derive(Debug, Args)]
pub struct Pull {
    pub remote_name: String,
    #[arg(long)]
    pub insecure: bool,
    #[arg(long, default_value_t = 4)]
    pub concurrency: u32,
    #[arg(long, hide = true)]
    pub deduplicate: bool,
}

#[derive(Debug, Args)]
pub struct List {
    #[arg(long)]
    pub source: Option<String>,
    #[arg(long, default_value = "text")]
    pub format: Format,
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Set {
    pub name: String,
    #[arg(long)]
    pub cpu: Option<u16>,
    #[arg(long)]
    pub memory: Option<u64>,
    #[arg(long)]
    pub display: Option<String>,
    #[arg(long, overrides_with = "no_display_refit")]
    pub display_refit: bool,
    #[arg(long)]
    pub no_display_refit: bool,
    #[arg(long)]
    pub random_mac: bool,
    #[arg(long)]
    pub random_serial: bool,
    #[arg(long)]
    pub disk: Option<String>,
    #[arg(long)]
    pub disk_size: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Resolver {
    Dhcp,
    Arp,
    Agent,
}

#[derive(Debug, Args)]
pub struct Ip {
    pub name: String,
    #[arg(long, default_value_t = 0)]
    pub wait: u16,
    #[arg(long, default_value = "dhcp")]
    pub resolver: Resolver,
}

#[derive(Debug, Args)]
pub struct Exec {
    #[arg(short)]
    pub interactive: bool,
    #[arg(short)]
    pub tty: bool,
    pub name: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Prune {
    #[arg(long, default_value = "caches")]
    pub entries: String,
    #[arg(long)]
    pub older_than: Option<u64>,
    #[arg(long, hide = true)]
    pub cache_budget: Option<u64>,
    #[arg(long)]
    pub space_budget: Option<u64>,
    #[arg(long, hide = true)]
    pub gc: bool,
}

#[derive(Debug, Args, Default)]
pub struct Run {
    pub name: String,
    #[arg(long)]
    pub no_graphics: bool,
    #[arg(long)]
    pub serial: bool,
    #[arg(long)]
    pub serial_path: Option<String>,
    #[arg(long, hide = true)]
    pub graphics: bool,
    #[arg(long)]
    pub no_audio: bool,
    #[arg(long)]
    pub no_clipboard: bool,
    #[arg(long)]
    pub recovery: bool,
    #[arg(long)]
    pub vnc: bool,
    #[arg(long)]
    pub vnc_experimental: bool,
    #[arg(long)]
    pub disk: Vec<String>,
    #[arg(long)]
    pub rosetta: Option<String>,
    #[arg(long)]
    pub dir: Vec<String>,
    #[arg(long)]
    pub nested: bool,
    #[arg(long)]
    pub net_bridged: Vec<String>,
    #[arg(long)]
    pub net_softnet: bool,
    #[arg(long)]
    pub net_softnet_allow: Option<String>,
    #[arg(long)]
    pub net_softnet_block: Option<String>,
    #[arg(long)]
    pub net_softnet_control_fd: Option<i32>,
    #[arg(long)]
    pub net_softnet_expose: Option<String>,
    #[arg(long)]
    pub net_host: bool,
    #[arg(long, default_value = "", hide_default_value = true)]
    pub root_disk_opts: String,
    #[arg(long)]
    pub suspendable: bool,
    #[arg(long)]
    pub capture_system_keys: bool,
    #[arg(long)]
    pub no_trackpad: bool,
    #[arg(long)]
    pub no_pointer: bool,
    #[arg(long)]
    pub no_keyboard: bool,
    #[arg(long)]
    pub provisioning_opts: Option<String>,
}

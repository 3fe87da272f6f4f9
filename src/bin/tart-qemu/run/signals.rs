//! Signals as events. Handlers are installed explicitly: a shell starts background jobs with SIGINT ignored.

use std::io;
use std::sync::mpsc::{Sender, channel};

use tokio::signal::unix::{SignalKind, signal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// SIGINT: power cut.
    Interrupt,
    /// SIGUSR1.
    Suspend,
    /// SIGUSR2: the guest is asked to shut down.
    Stop,
}

/// Returns once the handlers are in place. SIGTERM keeps its default: it ends this process, and QEMU with it.
pub fn listen(received: impl Fn(Request) + Send + 'static) -> io::Result<()> {
    let (armed, ready) = channel();
    std::thread::spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(armed.send(Err(error))),
        };
        runtime.block_on(forward(&received, &armed));
    });
    ready.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

async fn forward(received: &impl Fn(Request), armed: &Sender<io::Result<()>>) {
    let handlers = (|| {
        Ok((
            signal(SignalKind::interrupt())?,
            signal(SignalKind::user_defined1())?,
            signal(SignalKind::user_defined2())?,
        ))
    })();
    let (mut interrupt, mut suspend, mut stop) = match handlers {
        Ok(handlers) => handlers,
        Err(error) => return drop(armed.send(Err(error))),
    };
    let _ = armed.send(Ok(()));
    loop {
        received(tokio::select! {
            _ = interrupt.recv() => Request::Interrupt,
            _ = suspend.recv() => Request::Suspend,
            _ = stop.recv() => Request::Stop,
        });
    }
}

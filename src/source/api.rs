//! The daemon's own API as a source of builds: clients bring them. It stays until all is over, so that they see the end.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt as _};
use tokio::net::TcpListener;

use super::{Ends, Source};
use crate::api::Options;
use crate::api::serve::serve;
use crate::api::service::Service;

/// A port that is listened on.
pub struct Api {
    pub listener: TcpListener,
    pub service: Arc<dyn Service>,
    pub options: Options,
}

impl Source for Api {
    fn settles(&self) -> bool {
        false
    }

    fn run(self: Box<Self>, ends: Ends) -> BoxFuture<'static, ()> {
        async move { serve(self.listener, self.service, self.options, ends.over).await }.boxed()
    }
}

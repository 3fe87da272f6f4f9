//! `GET /api/v1/builds/{id}/log`: server-sent events that can be taken up again at any line, or plain text.

use std::convert::Infallible;
use std::future::ready;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::error::Reply;
use super::lists::{IdPath, id_of};
use super::query::LogQuery;
use super::routes::App;
use super::wire::{LogLine, LogStream};
use crate::ids::BuildId;

/// What a browser waits before it comes back.
const RETRY: Duration = Duration::from_secs(1);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Asks proxies not to hold events back.
const UNBUFFERED: (&str, &str) = ("x-accel-buffering", "no");

/// The handler.
pub async fn log(State(app): State<App>, path: IdPath, uri: Uri, headers: HeaderMap) -> Reply {
    let id = id_of(path)?;
    let last = headers.get(LAST_EVENT_ID).map(|v| v.to_str().unwrap_or("not a number"));
    let asked = LogQuery::parse(&uri, last.filter(|text| !text.is_empty()))?;
    let turn = app.follower()?;
    let lines = app.service.log(id, asked.after, asked.follow).await?;
    // The turn lasts as long as the stream does.
    let lines = lines.inspect(move |_| _ = &turn).boxed();
    Ok(if asked.text { text(&app, lines) } else { events(&app, id, lines) })
}

fn events(app: &App, id: BuildId, lines: BoxStream<'static, LogLine>) -> Response {
    let service = app.service.clone();
    let head = stream::once(ready(Event::default().retry(RETRY)));
    // Only a build that is over has an end. Without it, the client knows that it must come back.
    let end = stream::once(async move { service.build(id).await.ok() }).filter_map(|view| {
        let over = view.filter(|view| view.result.is_some());
        ready(over.and_then(|view| Event::default().event("end").json_data(view).ok()))
    });
    let all = head
        .chain(lines.filter_map(|line| ready(line_event(&line))))
        .chain(end)
        .take_until(app.shutdown.clone().cancelled_owned())
        .map(Ok::<_, Infallible>);
    let ping =
        KeepAlive::new().interval(app.options.limits.ping).event(Event::default().event("ping").data("ping"));
    ([UNBUFFERED], Sse::new(all).keep_alive(ping)).into_response()
}

fn line_event(line: &LogLine) -> Option<Event> {
    Event::default().id(line.n.to_string()).json_data(line).ok()
}

fn text(app: &App, lines: BoxStream<'static, LogLine>) -> Response {
    let plain = lines.take_until(app.shutdown.clone().cancelled_owned()).map(|line| {
        Ok::<_, Infallible>(match line.stream {
            LogStream::Out | LogStream::Err => format!("{}\n", line.text),
            LogStream::Sys => format!("preheat: {}\n", line.text),
        })
    });
    let headers = [(CONTENT_TYPE.as_str(), "text/plain; charset=utf-8"), UNBUFFERED];
    (headers, Body::from_stream(plain)).into_response()
}

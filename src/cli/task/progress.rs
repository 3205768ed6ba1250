//! The live view of a running task: a heading and a line per subtask, each with a bar, as wide as the terminal.
//!
//! What stands in a line is decided by [`lines`], which knows no terminal and no clock; [`Live`] draws it over itself on stderr. A bar is
//! heavy as far as the work is done. How far that is only some agents tell; for others a piece of it wanders, which says that they work and no
//! more. When the terminal is narrow the node goes first, then attempts, then the word for what mark and bar show too, then the cost, and what
//! is left is cut; when there are many subtasks they are summed up in one line and only those that run or failed have their own.

use console::{StyledObject, Term, measure_text_width, pad_str, style, truncate_str};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

use super::{
    super::{Global, figures},
    document::{REASON_CHARS_MAX, Status, Step, now_ms, reason},
    short,
};
use crate::model::printable;

/// Subtasks that have a line each; more are summed up.
const ROWS_MAX: usize = 20;

/// How wide a subtask's name may be.
const NAME_WIDTH_MAX: usize = 24;

/// How wide the name of the task may be.
const TITLE_WIDTH_MAX: usize = 32;

/// How wide the name of an agent may be: a longer one takes no other column's place.
const AGENT_WIDTH_MAX: usize = 28;

/// The width of a bar.
const BAR_WIDTH: usize = 16;

/// How much of a bar wanders while an agent works and does not tell how far it is.
const WANDERER_WIDTH: usize = 3;

/// How many drawings that piece stays where it is.
const WANDERER_FRAMES: usize = 2;

/// The same where figures need the room.
const BAR_WIDTH_NARROW: usize = 8;

/// The columns of a terminal below which room is short.
const NARROW: usize = 100;

/// Columns that stay free at the end of a line: a line that the terminal breaks spoils the next drawing.
const MARGIN_WIDTH: usize = 3;

/// What stands between columns.
const GAP: &str = "  ";

/// The size of a terminal that does not tell it.
const SIZE_DEFAULT: (u16, u16) = (24, 80);

/// Lines of the terminal that are left for the heading, the sum and the prompt.
const ROWS_RESERVED: usize = 4;

const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// The circumstances of one drawing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    /// How long ago the task was created.
    pub(super) elapsed_ms: u64,
    /// Columns of the terminal.
    pub(super) width: usize,
    /// How many subtasks may have a line.
    pub(super) rows_max: usize,
    /// How many drawings there were before.
    pub(super) number: usize,
    /// Why the node cannot be asked at the moment.
    pub(super) lost: Option<&'a str>,
    /// Whether marks and bars are coloured.
    pub(super) colour: bool,
}

/// The view on stderr.
#[derive(Debug)]
pub(super) struct Live {
    bar: ProgressBar,
    term: Term,
    task: Option<Status>,
    lost: Option<String>,
    drawn: usize,
    id: String,
    colour: bool,
    ended: bool,
}

impl Live {
    pub(super) fn new(id: &str, global: &Global) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_finish(ProgressFinish::Abandon);
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        let colour = global.screen.err_is_terminal() && global.env.text("NO_COLOR").is_none();
        Self { bar, term: Term::stderr(), task: None, lost: None, drawn: 0, id: short(id), colour, ended: false }
    }

    /// Whether nothing is known of the task yet.
    pub(super) fn is_empty(&self) -> bool {
        self.task.is_none()
    }

    pub(super) fn update(&mut self, task: Status) {
        self.task = Some(task);
    }

    /// Notes that the node cannot be asked, and why, or that it can again.
    pub(super) fn lost(&mut self, why: Option<String>) {
        self.lost = why;
    }

    /// Draws it for the last time.
    pub(super) fn end(&mut self) {
        self.lost = None;
        self.draw();
        self.ended = true;
    }

    pub(super) fn draw(&mut self) {
        let (rows, columns) = self.term.size_checked().unwrap_or(SIZE_DEFAULT);
        let waiting = Status { task_id: self.id.clone(), ..Status::default() };
        let task = self.task.as_ref().unwrap_or(&waiting);
        let frame = Frame {
            elapsed_ms: task.elapsed_ms(now_ms()).unwrap_or_default(),
            width: columns.into(),
            rows_max: usize::from(rows).saturating_sub(ROWS_RESERVED).clamp(1, ROWS_MAX),
            number: self.drawn,
            lost: self.lost.as_deref(),
            colour: self.colour,
        };
        self.drawn = self.drawn.wrapping_add(1);
        self.bar.set_message(lines(task, &frame).join("\n"));
        // The terminal writes `^C` where the cursor is. At the end of a line that would begin another one, and the next drawing would
        // miss the first of what is there; the last line begins with blanks. A terminal that is gone shows nothing anyway.
        let _ = self.term.write_str("\r");
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if !self.ended {
            // It stays as it is, and whoever speaks next begins a line.
            self.bar.set_draw_target(ProgressDrawTarget::hidden());
            let _ = self.term.write_line("");
        }
    }
}

/// The view as lines that fit the width.
pub(super) fn lines(task: &Status, frame: &Frame<'_>) -> Vec<String> {
    let frame = &Frame { width: frame.width.saturating_sub(MARGIN_WIDTH), ..*frame };
    let steps = &task.progress.steps;
    let all = steps.len() <= frame.rows_max;
    let mut shown: Vec<&Step> = steps.iter().filter(|step| all || step.is_running() || step.status == "FAILED").collect();
    // Those that run are what a person waits for.
    shown.sort_by_key(|step| !all && !step.is_running());
    shown.truncate(frame.rows_max);
    let mut lines = vec![heading(task, frame)];
    if !all {
        lines.push(format!("  {}", sum(steps)));
    }
    lines.extend(rows(task, &shown, frame));
    lines.iter().map(|line| truncate_str(line, frame.width, "…").into_owned()).collect()
}

fn heading(task: &Status, frame: &Frame<'_>) -> String {
    let title = if task.name.is_empty() { "task".to_owned() } else { figures::word(&task.name) };
    let percent = task.progress.percent_complete.clamp(0.0, 100.0);
    let mut facts = vec![short(&task.task_id)];
    match frame.lost {
        Some(why) => facts.push(format!("trying to reach the node: {}", printable(why, REASON_CHARS_MAX))),
        None if task.status.is_empty() => facts.push("waiting for the node".to_owned()),
        None => {
            facts.extend([task.standing(), format!("{} {percent:.0} %", bar(percent, frame)), clock(frame.elapsed_ms)]);
            facts.push(task.cost());
        }
    }
    let facts = facts.join(GAP);
    // The name gives way to the figures.
    let room = frame.width.saturating_sub(measure_text_width(&facts) + 4).clamp(8, TITLE_WIDTH_MAX);
    let mark = if task.has_ended() { mark(if task.status == "COMPLETED" { "SUCCESS" } else { "FAILED" }, frame) } else { spinner(frame) };
    format!("{mark} {}{GAP}{facts}", truncate_str(&title, room, "…"))
}

const fn bar_width(frame: &Frame<'_>) -> usize {
    if frame.width < NARROW { BAR_WIDTH_NARROW } else { BAR_WIDTH }
}

fn bar(percent: f64, frame: &Frame<'_>) -> String {
    let width = bar_width(frame);
    let full = (percent.clamp(0.0, 100.0) / 100.0 * width as f64).round() as usize;
    "━".repeat(full) + &"╌".repeat(width.saturating_sub(full))
}

/// The bar of a subtask, and how many percent it is where that is known and not plain to see.
fn gauge(task: &Status, step: &Step, frame: &Frame<'_>) -> String {
    let works = step.status == "EXECUTING" && !task.has_ended();
    let told = step.progress_percentage.filter(|_| works);
    let text = match (step.status.as_str(), told) {
        ("SUCCESS" | "COMPLETED", _) => bar(100.0, frame),
        ("FAILED", _) => "─".repeat(bar_width(frame)),
        (_, Some(percent)) => bar(percent, frame),
        (_, None) if works => wanderer(frame),
        (_, None) => bar(0.0, frame),
    };
    let percent = told.map(|percent| format!(" {:.0} %", percent.clamp(0.0, 100.0))).unwrap_or_default();
    hue(&step.status, style(text)).force_styling(frame.colour).to_string() + &percent
}

fn wanderer(frame: &Frame<'_>) -> String {
    let width = bar_width(frame);
    let begins = frame.number / WANDERER_FRAMES % width;
    (0..width).map(|place| if (place + width - begins) % width < WANDERER_WIDTH { '╍' } else { '╌' }).collect()
}

/// `12 done, 3 running, 40 waiting, 1 failed`.
fn sum(steps: &[Step]) -> String {
    let count = |which: &dyn Fn(&Step) -> bool| steps.iter().filter(|step| which(step)).count();
    let done = count(&|step| step.status == "SUCCESS");
    let failed = count(&|step| step.status == "FAILED");
    let running = count(&Step::is_running);
    let waiting = steps.len() - done - failed - running;
    let text = format!("{} subtasks: {done} done, {running} running, {waiting} waiting", steps.len());
    if failed > 0 { format!("{text}, {failed} failed") } else { text }
}

/// The columns that a subtask has beside its mark and its name: bar, status, agent, node, time, cost, attempt.
const COLUMNS: usize = 7;

/// The first of them that has nothing to show for who waits.
const AGENT_COLUMN: usize = 2;

/// Columns in the order in which they are given up, by their place.
const GIVEN_UP: [usize; 5] = [3, 6, 1, 5, 0];

fn rows(task: &Status, steps: &[&Step], frame: &Frame<'_>) -> Vec<String> {
    let cells: Vec<[String; COLUMNS]> = steps.iter().map(|step| cells(task, step, frame)).collect();
    let widest = |of: &mut dyn Iterator<Item = &String>| of.map(|cell| measure_text_width(cell)).max().unwrap_or_default();
    let mut widths: [usize; COLUMNS] = std::array::from_fn(|column| widest(&mut cells.iter().filter_map(|row| row.get(column))));
    let names: Vec<String> = steps.iter().map(|step| step.label()).collect();
    let name_width = widest(&mut names.iter()).min(NAME_WIDTH_MAX);
    for column in GIVEN_UP {
        let wide: usize = widths.iter().filter(|width| **width > 0).map(|width| width + GAP.len()).sum();
        if name_width + wide + 4 > frame.width
            && let Some(width) = widths.get_mut(column)
        {
            *width = 0;
        }
    }
    let mut lines = Vec::new();
    // What went wrong has a line of its own where there are lines left for it.
    let mut spare = frame.rows_max.saturating_sub(steps.len());
    for ((step, cells), name) in steps.iter().zip(&cells).zip(&names) {
        let name = truncate_str(name, name_width, "…");
        let mut line = format!("  {} {}", mark(&step.status, frame), pad_str(&name, name_width, console::Alignment::Left, None));
        let note = note(task, step);
        for ((cell, width), column) in cells.iter().zip(widths).zip(0..) {
            // Who waits says there what for.
            if width == 0 || column >= AGENT_COLUMN && !note.is_empty() {
                continue;
            }
            line += GAP;
            line += &pad_str(cell, width, console::Alignment::Left, None);
        }
        if !note.is_empty() {
            line += GAP;
            line += &note;
        }
        lines.push(line.trim_end().to_owned());
        if let (Some(error), "FAILED" | "RETRYING", 1..) = (&step.error, step.status.as_str(), spare) {
            spare -= 1;
            lines.push(format!("      {}", reason(error)));
        }
    }
    lines
}

/// What stands in the columns.
fn cells(task: &Status, step: &Step, frame: &Frame<'_>) -> [String; COLUMNS] {
    let node = step.node();
    let spent_ms = step.duration_ms.or_else(|| {
        let runs = step.is_running() && !task.has_ended();
        step.started_ms.filter(|_| runs).map(|started_ms| (frame.elapsed_ms as f64 - started_ms).max(0.0))
    });
    [
        gauge(task, step, frame),
        figures::word(&step.status),
        truncate_str(&step.who(), AGENT_WIDTH_MAX, "…").into_owned(),
        if node.is_empty() { node } else { format!("on {node}") },
        spent_ms.map(|ms| if step.has_ended() { figures::millis(ms) } else { clock(ms as u64) }).unwrap_or_default(),
        if step.cost.is_null() {
            String::new()
        } else {
            format!("{} {}", super::document::amount(&step.cost), figures::word(&task.currency))
        },
        step.attempt.filter(|attempt| *attempt > 1).map(|attempt| format!("attempt {attempt}")).unwrap_or_default(),
    ]
}

/// What a subtask that nobody works on waits for.
fn note(task: &Status, step: &Step) -> String {
    if step.has_ended() || step.status == "EXECUTING" || task.has_ended() {
        return String::new();
    }
    if let Some(waits) = step.waits() {
        return waits;
    }
    let open = |name: &&String| task.progress.steps.iter().any(|step| step.subtask_id == **name && step.status != "SUCCESS");
    let after: Vec<String> = step.after.iter().filter(open).map(|name| figures::word(name)).collect();
    if after.is_empty() { String::new() } else { format!("after {}", after.join(", ")) }
}

/// A time that runs: in whole seconds, so that the line stands still in between.
fn clock(ms: u64) -> String {
    match ms / 1_000 {
        seconds if seconds < 60 => format!("{seconds} s"),
        seconds if seconds < 3_600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => figures::span(ms),
    }
}

fn spinner(frame: &Frame<'_>) -> String {
    let one = SPINNER.get(frame.number % SPINNER.len()).copied().unwrap_or_default();
    style(one).cyan().force_styling(frame.colour).to_string()
}

fn mark(status: &str, frame: &Frame<'_>) -> String {
    let mark = match status {
        "SUCCESS" => "✓",
        "FAILED" => "✗",
        "RETRYING" => "↻",
        "EXECUTING" | "COMPLETED" => return spinner(frame),
        _ => "·",
    };
    hue(status, style(mark)).force_styling(frame.colour).to_string()
}

/// The colour of a status.
fn hue<D>(status: &str, text: StyledObject<D>) -> StyledObject<D> {
    match status {
        "SUCCESS" => text.green(),
        "FAILED" => text.red(),
        "RETRYING" => text.yellow(),
        "EXECUTING" | "COMPLETED" => text.cyan(),
        _ => text.dim(),
    }
}

//! Draws a figure, as SVG for a page, and as SVG and PNG files.
//!
//! Text in files is DejaVu Sans, which comes with the program; in a page it is the reader's font, and the ink is the
//! page's, so that one drawing is legible in light and dark. Lines are told apart by colour and by the shape of their
//! points; the colours have a contrast of 3 to 1 or more on white and on nearly black.

use std::io;
use std::sync::Once;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::figures::{Axis, Dot, Figure};
use crate::targets::size;

/// Shown in place of the page's ink, which the drawing doesn't know.
const INK: RGBColor = RGBColor(1, 2, 3);
const INK_TEXT: &str = "#010203";
const COLOURS: [RGBColor; 12] = [
    RGBColor(0x2f, 0x7d, 0xe1),
    RGBColor(0xd1, 0x6a, 0x00),
    RGBColor(0x2a, 0x93, 0x4f),
    RGBColor(0xd8, 0x44, 0x5f),
    RGBColor(0x8f, 0x62, 0xd9),
    RGBColor(0x0e, 0x8f, 0x9c),
    RGBColor(0xa0, 0x74, 0x2a),
    RGBColor(0x7d, 0x82, 0x8a),
    RGBColor(0xc0, 0x4f, 0xa0),
    RGBColor(0x6f, 0x8f, 0x1f),
    RGBColor(0x5b, 0x6b, 0xe0),
    RGBColor(0xb8, 0x5c, 0x4a),
];
/// Size of a point.
const POINT: i32 = 4;

/// The colour of line `number`.
#[must_use]
pub fn colour(number: usize) -> String {
    let RGBColor(r, g, b) = COLOURS[number % COLOURS.len()];
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// A drawing failed: the figure has nothing that can be drawn.
#[derive(Debug, thiserror::Error)]
#[error("a figure can't be drawn: {0}")]
pub struct DrawError(String);

fn failed(error: impl std::fmt::Display) -> DrawError {
    DrawError(error.to_string())
}

fn font() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        let registered = register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
        debug_assert!(registered.is_ok(), "the font that comes with the program");
    });
}

/// As SVG for a page: its ink is the text's colour there, and its width what there is.
///
/// # Errors
/// [`DrawError`].
pub fn inline(figure: &Figure, class: &str, pixels: (u32, u32)) -> Result<String, DrawError> {
    let svg = svg(figure, pixels, INK, None)?;
    let (_, body) = svg.split_once('>').ok_or_else(|| failed("no svg"))?;
    let (width, height) = pixels;
    let body = body.replace(INK_TEXT, "currentColor");
    Ok(format!("<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" aria-hidden=\"true\">{body}"))
}

/// As an SVG file, which says at its head where it is from.
///
/// # Errors
/// [`DrawError`].
pub fn svg_file(figure: &Figure, origin: &str) -> Result<String, DrawError> {
    svg(figure, FILE, RGBColor(0x22, 0x22, 0x22), Some(origin))
}

const FILE: (u32, u32) = (1100, 560);

fn svg(
    figure: &Figure,
    pixels: (u32, u32),
    ink: RGBColor,
    origin: Option<&str>,
) -> Result<String, DrawError> {
    font();
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, pixels).into_drawing_area();
    draw(&area, figure, ink, origin).map_err(failed)?;
    area.present().map_err(failed)?;
    drop(area);
    Ok(text)
}

/// As a PNG file, which says at its head where it is from.
///
/// # Errors
/// [`DrawError`].
pub fn png_file(figure: &Figure, origin: &str) -> Result<Vec<u8>, DrawError> {
    font();
    let (width, height) = FILE;
    let mut pixels = vec![0; (width * height * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, FILE).into_drawing_area();
        draw(&area, figure, RGBColor(0x22, 0x22, 0x22), Some(origin)).map_err(failed)?;
        area.present().map_err(failed)?;
    }
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder
        .write_header()
        .and_then(|mut writer| writer.write_image_data(&pixels))
        .map_err(io::Error::from)
        .map_err(failed)?;
    Ok(file)
}

/// An axis with lines where they are wanted.
struct Scale {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let part = (value - self.low) / (self.high - self.low);
        from + (f64::from(to - from) * part).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

/// Where a value is on its axis.
fn place(value: f64, is_log: bool) -> f64 {
    if is_log { value.log10() } else { value }
}

/// Draws; with an origin also title, background and legend, which a page has beside the drawing.
fn draw<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    figure: &Figure,
    ink: RGBColor,
    origin: Option<&str>,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let (width, _) = area.dim_in_pixel();
    let is_narrow = width < 500;
    let mut plot = area.clone();
    if let Some(origin) = origin {
        area.fill(&WHITE)?;
        let (left, right) = area.split_horizontally(width as i32 - 300);
        legend(&right, figure, ink)?;
        plot = left.titled(&figure.title, ("sans-serif", 20).into_font().color(&ink))?;
        plot = plot.titled(origin, ("sans-serif", 14).into_font().color(&ink))?;
    }
    let is_by_bytes = figure.axis == Axis::Bytes;
    let dots = || figure.lines.iter().flat_map(|line| &line.dots);
    let across = |dot: &Dot| if is_by_bytes { dot.x.max(1.0).log2() } else { dot.x };
    let (left, right) = range(dots().map(across));
    let ends = |dot: &Dot| [dot.y].into_iter().chain(dot.quartiles.into_iter().flatten());
    let heights = dots().flat_map(ends).filter(|&y| y.is_finite() && (!figure.is_log || y > 0.0));
    let (mut low, mut high) = range(heights.map(|y| place(y, figure.is_log)));
    if !figure.is_log {
        low = low.min(0.0);
    }
    let margin = (high - low) * 0.05;
    (low, high) = (if figure.is_log { low - margin } else { low }, high + margin);
    let x_ticks: Vec<f64> = if is_by_bytes {
        let step = if is_narrow || right - left > 14.0 { 3 } else { 1 };
        (left.floor() as i64..=right.ceil() as i64)
            .filter(|tick| tick % step == 0)
            .map(|tick| tick as f64)
            .collect()
    } else {
        Vec::new()
    };
    let y_ticks = ticks(low, high, figure.is_log);
    let x_axis = Scale { low: left - 0.4, high: right + 0.4, ticks: x_ticks };
    let y_axis = Scale { low, high, ticks: y_ticks };
    let mut chart = ChartBuilder::on(&plot)
        .margin_right(12)
        .margin_top(10)
        .margin_bottom(4)
        .x_label_area_size(if is_by_bytes { 34 } else { 10 })
        .y_label_area_size(if is_narrow { 46 } else { 62 })
        .build_cartesian_2d(x_axis, y_axis)?;
    let text = ("sans-serif", 15).into_font().color(&ink);
    chart
        .configure_mesh()
        .bold_line_style(ink.mix(0.18))
        .light_line_style(TRANSPARENT)
        .axis_style(ink.mix(0.6))
        .label_style(text)
        .x_label_formatter(&|x| size(2f64.powf(*x).round() as u64))
        .y_label_formatter(&|y| short(if figure.is_log { 10f64.powf(*y) } else { *y }))
        .draw()?;
    let is_bars = !is_by_bytes && !figure.is_log;
    for (number, line) in figure.lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let at = |dot: &Dot| (across(dot), place(dot.y, figure.is_log).clamp(low, high));
        let path: Vec<_> = line.dots.iter().map(at).collect();
        if path.len() > 1 && line.is_published {
            let dashed = DashedPathElement::new(path.clone(), 7, 5, colour.stroke_width(2));
            chart.draw_series([dashed])?;
        } else if path.len() > 1 {
            chart.draw_series([PathElement::new(path.clone(), colour.stroke_width(2))])?;
        }
        if is_bars {
            let bar =
                |&(x, y): &(f64, f64)| Rectangle::new([(x - 0.35, low), (x + 0.35, y)], colour.filled());
            chart.draw_series(path.iter().map(bar))?;
        }
        for dot in &line.dots {
            if let Some([q1, q3]) = dot.quartiles.filter(|[q1, _]| !figure.is_log || *q1 > 0.0) {
                let end = |y| (across(dot), place(y, figure.is_log).clamp(low, high));
                let style = if is_bars { ink.stroke_width(2) } else { colour.mix(0.55).stroke_width(3) };
                chart.draw_series([PathElement::new(vec![end(q1), end(q3)], style)])?;
            }
        }
        for &at in path.iter().filter(|_| !is_bars) {
            chart.plotting_area().draw(&point(number, at))?;
        }
    }
    Ok(())
}

/// A point of line `number`: its colour and shape.
fn point<'a, DB: DrawingBackend + 'a, At: Clone + 'static>(number: usize, at: At) -> DynElement<'a, DB, At> {
    let colour = COLOURS[number % COLOURS.len()];
    match shape(number) {
        0 => Circle::new(at, POINT, colour.filled()).into_dyn(),
        1 => TriangleMarker::new(at, POINT + 2, colour.filled()).into_dyn(),
        _ => Cross::new(at, POINT, colour.stroke_width(2)).into_dyn(),
    }
}

const fn shape(number: usize) -> usize {
    number / COLOURS.len() % 2 + number % 2
}

/// The same shape as text, for a page.
#[must_use]
pub fn mark(number: usize) -> &'static str {
    ["●", "▲", "✕"][shape(number) % 3]
}

/// Names of the lines, from the top down.
fn legend<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    figure: &Figure,
    ink: RGBColor,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let text = ("sans-serif", 15).into_font().color(&ink);
    area.draw(&Text::new(figure.unit.clone(), (10, 16), text.clone()))?;
    for (number, line) in figure.lines.iter().enumerate() {
        let y = 48 + 24 * number as i32;
        let colour = COLOURS[number % COLOURS.len()];
        area.draw(&PathElement::new(vec![(10, y + 6), (34, y + 6)], colour.stroke_width(2)))?;
        area.draw(&point(number, (22, y + 6)))?;
        area.draw(&Text::new(line.name.clone(), (42, y), text.clone()))?;
    }
    Ok(())
}

/// From the least to the greatest, never empty.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let all = values.filter(|value| value.is_finite());
    let (low, high) =
        all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    match high - low {
        wide if wide >= 1e-3 => (low, high),
        narrow if narrow >= 0.0 => (low - 0.5, high + 0.5),
        _ => (0.0, 1.0),
    }
}

/// Round numbers.
fn ticks(low: f64, high: f64, is_log: bool) -> Vec<f64> {
    if !is_log {
        let step = 10f64.powf((high - low).log10().floor());
        let step = if (high - low) / step < 3.0 { step / 2.0 } else { step };
        return (0..=30)
            .map(|at| (low / step).ceil() * step + f64::from(at) * step)
            .take_while(|&at| at <= high)
            .collect();
    }
    // Decades, and parts of them where there are few.
    let parts: &[f64] = if high - low < 0.5 {
        &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    } else if high - low < 1.3 {
        &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0]
    } else if high - low < 2.5 {
        &[1.0, 3.0]
    } else {
        &[1.0]
    };
    let decades = low.floor() as i32..=high.ceil() as i32;
    let all = decades.flat_map(|decade| parts.iter().map(move |part| f64::from(decade) + part.log10()));
    all.filter(|&at| at >= low && at <= high).collect()
}

/// `1.5k`, `20M`.
fn short(value: f64) -> String {
    let (divided, letter) = match value.abs() {
        large if large >= 1e9 => (value / 1e9, "G"),
        large if large >= 1e6 => (value / 1e6, "M"),
        large if large >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let rounded = (divided * 100.0).round() / 100.0;
    format!("{rounded}{letter}")
}

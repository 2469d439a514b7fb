//! A folder of results as one page: figures like the paper's, beside what the paper published.
//!
//! [`figures`] says what is drawn, [`chart`] draws it (plotters; as SVG within the page, as SVG and PNG files beside
//! it), [`published`] has the paper's values and compares, [`page`] puts all into HTML that needs nothing else.
//! Results are a stranger's: their strings are escaped, their numbers may be anything.

pub mod chart;
pub mod figures;
mod lists;
pub mod page;
pub mod published;

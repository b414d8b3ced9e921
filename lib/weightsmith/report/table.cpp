#include "weightsmith/report/table.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

/// A cell as Markdown takes it: a bar would end it, a line break the table.
std::string markdown_cell(const std::string& text) {
  std::string cell;
  for (const char ch : text) {
    if (ch == '|') cell += '\\';
    cell += ch == '\n' || ch == '\r' ? ' ' : ch;
  }
  return cell;
}

std::vector<std::string> markdown_cells(const std::vector<std::string>& row) {
  std::vector<std::string> cells(row.size());
  std::transform(row.begin(), row.end(), cells.begin(), markdown_cell);
  return cells;
}

}  // namespace

void Table::add_row(std::vector<std::string> cells) {
  WS_CHECK(cells.size() == header_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::markdown() const {
  const std::vector<std::string> header = markdown_cells(header_);
  std::vector<std::vector<std::string>> rows;
  for (const auto& row : rows_) rows.push_back(markdown_cells(row));
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < header.size(); ++c) {
    std::size_t width = std::max<std::size_t>(header[c].size(), 3);
    for (const auto& row : rows) width = std::max(width, row[c].size());
    widths.push_back(width);
  }
  std::string text;
  const auto add_line = [&](const std::vector<std::string>& cells) {
    for (std::size_t c = 0; c < cells.size(); ++c)
      text += c == 0 ? fmt::format("| {:<{}} ", cells[c], widths[c])
                     : fmt::format("| {:>{}} ", cells[c], widths[c]);
    text += "|\n";
  };
  add_line(header);
  for (std::size_t c = 0; c < widths.size(); ++c)
    text += c == 0 ? fmt::format("|{:-<{}}", "", widths[c] + 2)
                   : fmt::format("|{:->{}}:", "", widths[c] + 1);
  text += "|\n";
  for (const auto& row : rows) add_line(row);
  return text;
}

std::string Table::csv() const {
  std::string text;
  const auto add_line = [&text](const std::vector<std::string>& cells) {
    for (std::size_t c = 0; c < cells.size(); ++c) {
      if (c > 0) text += ',';
      if (cells[c].find_first_of(",\"\r\n") == std::string::npos) {
        text += cells[c];
        continue;
      }
      text += '"';
      for (const char ch : cells[c]) text += ch == '"' ? std::string("\"\"") : std::string(1, ch);
      text += '"';
    }
    text += '\n';
  };
  add_line(header_);
  for (const auto& row : rows_) add_line(row);
  return text;
}

}  // namespace weightsmith

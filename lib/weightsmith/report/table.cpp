#include "weightsmith/report/table.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "weightsmith/core/error.h"

namespace weightsmith {

void Table::add_row(std::vector<std::string> cells) {
  WS_CHECK(cells.size() == header_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::markdown() const {
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < header_.size(); ++c) {
    std::size_t width = std::max<std::size_t>(header_[c].size(), 3);
    for (const auto& row : rows_) width = std::max(width, row[c].size());
    widths.push_back(width);
  }
  std::string text;
  const auto add_line = [&](const std::vector<std::string>& cells) {
    for (std::size_t c = 0; c < cells.size(); ++c)
      text += c == 0 ? fmt::format("| {:<{}} ", cells[c], widths[c])
                     : fmt::format("| {:>{}} ", cells[c], widths[c]);
    text += "|\n";
  };
  add_line(header_);
  for (std::size_t c = 0; c < widths.size(); ++c)
    text += c == 0 ? fmt::format("|{:-<{}}", "", widths[c] + 2)
                   : fmt::format("|{:->{}}:", "", widths[c] + 1);
  text += "|\n";
  for (const auto& row : rows_) add_line(row);
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

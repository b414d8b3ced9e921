#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace weightsmith {

/// A small table of text for people and for documents.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  /// As many cells as the header has.
  void add_row(std::vector<std::string> cells);
  /// GitHub-flavoured Markdown, padded so that it reads well as plain text; the first column is
  /// left-aligned, the others right-aligned. Bars in cells are escaped, line breaks become spaces.
  std::string markdown() const;
  /// RFC 4180: cells with commas, quotes or line breaks are quoted.
  std::string csv() const;

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace weightsmith

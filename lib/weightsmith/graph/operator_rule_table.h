#pragma once

#include <map>
#include <string>
#include <vector>

#include "weightsmith/graph/operator_rules.h"

namespace weightsmith {

/// All rules by operator name. To add an operator: one entry in one of the functions below, and a
/// small graph in tests/unit/graph/*_rules_test.cpp.
using RuleTable = std::map<std::string, OperatorRule>;

void add_elementwise_rules(RuleTable& table);  ///< also reductions, softmax
void add_movement_rules(RuleTable& table);     ///< reshapes, slices, concatenation, indexing
void add_layer_rules(RuleTable& table);        ///< products, convolution, norms, pooling, attention
void add_recurrent_rules(RuleTable& table);    ///< lstm, gru, rnn

inline void add_rules(RuleTable& table, const std::vector<std::string>& names,
                      const OperatorRule& rule) {
  for (const std::string& name : names) table[name] = rule;
}

}  // namespace weightsmith

// Asks every unit that is linked, in turn, and compares with plain loops.

#include "problem.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

[[gnu::weak]] Answer v3(Problem const& problem);
[[gnu::weak]] Answer v4(Problem const& problem);

namespace {

Problem make_problem(std::int64_t head_dim, std::int64_t tokens) {
  std::mt19937 random(static_cast<std::uint32_t>(head_dim));
  std::uniform_int_distribution<int> eighths(-16, 16);  // exact as 16-bit floats
  auto const tensor = [&] {
    std::vector<float> values(static_cast<std::size_t>(head_dim * tokens));
    for (float& value : values) value = static_cast<float>(eighths(random)) / 8;
    return values;
  };
  Problem problem{head_dim, tokens, tensor(), tensor(), tensor()};
  return problem;
}

Answer reference(Problem const& problem) {
  std::int64_t const d = problem.head_dim;
  auto const at = [&](std::vector<float> const& data, std::int64_t token, std::int64_t channel) {
    return static_cast<double>(data[static_cast<std::size_t>(token * d + channel)]);
  };
  Answer answer;
  for (std::int64_t q = 0; q < problem.tokens; ++q) {
    std::vector<double> weights;
    double sum = 0;
    for (std::int64_t k = 0; k <= q; ++k) {
      double logit = 0;
      for (std::int64_t c = 0; c < d; ++c) logit += at(problem.queries, q, c) * at(problem.keys, k, c);
      weights.push_back(std::exp(logit / std::sqrt(static_cast<double>(d))));
      sum += weights.back();
    }
    for (double& weight : weights) {
      weight /= sum;
      answer.entropy -= weight * std::log(weight) / static_cast<double>(problem.tokens);
    }
    for (std::int64_t c = 0; c < d; ++c) {
      double output = 0;
      for (std::int64_t k = 0; k <= q; ++k) output += weights[static_cast<std::size_t>(k)] * at(problem.values, k, c);
      answer.masked.push_back(static_cast<float>(output));
    }
  }
  answer.attended.assign(answer.masked.end() - d, answer.masked.end());
  answer.half = answer.attended;
  return answer;
}

bool check(char const* unit, Answer (*ask)(Problem const&)) {
  if (ask == nullptr) return true;
  bool all = true;
  for (std::int64_t const head_dim : {20, 64, 72, 120}) {
    Problem const problem = make_problem(head_dim, 100);
    Answer const expected = reference(problem);
    Answer const got = ask(problem);
    auto const error = [&](std::vector<float> const& x, std::vector<float> const& y) {
      double largest = x.size() == y.size() ? 0 : INFINITY;
      for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
        double const difference = std::abs(static_cast<double>(x[i]) - y[i]);
        largest = difference <= largest ? largest : difference;  // NaN stays
      }
      return largest;
    };
    double const attended = error(expected.attended, got.attended);
    double const half = error(expected.half, got.half);
    double const masked = error(expected.masked, got.masked);
    double const entropy = std::abs(expected.entropy - got.entropy);
    bool const right = attended < 1e-4 && half < 1e-4 && masked < 1e-4 && entropy < 1e-4;
    if (!right) {
      std::printf("%s, head_dim %d: errors: attend %g, with 16 bits %g, masked %g, entropy %g\n", unit,
                  static_cast<int>(head_dim), attended, half, masked, entropy);
    }
    all = all && right;
  }
  return all;
}

}  // namespace

int main() {
  bool const all_right = check("baseline", baseline) & check("v3", v3) & check("v4", v4);
  return all_right ? 0 : 1;
}

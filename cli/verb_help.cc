#include "cli/help.h"
#include "cli/output.h"
#include "common/text.h"

namespace usblease::cli {

Result<void> verb_help(const Invocation& invocation, Context& /*context*/) {
  if (invocation.words.empty()) {
    print(general_help());
    return {};
  }
  std::size_t used = 0;
  const Verb* verb = find_verb(invocation.words, &used);
  if (verb == nullptr || used != invocation.words.size()) {
    return fail(ErrorCode::kBadInput, "there is no verb `" + escape_text(invocation.words[0].substr(0, 64)) +
                                          "`; `usblease help` lists them");
  }
  print(help_on(*verb));
  return {};
}

}  // namespace usblease::cli

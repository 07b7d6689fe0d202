// Help texts, made from the tables of verbs and options.
#pragma once

#include <string>

#include "cli/verb.h"

namespace usblease::cli {

std::string general_help();
std::string help_on(const Verb& verb);

}  // namespace usblease::cli

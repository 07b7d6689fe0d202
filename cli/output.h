// What goes to stdout (answers) and stderr (errors, progress).
#pragma once

#include <google/protobuf/message.h>

#include <cstdint>
#include <string>

#include "cli/table.h"
#include "cli/verb.h"
#include "common/error.h"
#include "record.pb.h"

namespace usblease::cli {

// Writes to stdout. A failure is kept by stdio and found by flush_output().
void print(const std::string& text);

// Everything is out, or kInternal: a full disk must not look like success.
Result<void> flush_output();

// "usblease: error: …" on one line of stderr.
void print_error(const Error& error);

// "usblease: warning: …", for what was done all the same.
void print_warning(const std::string& sentence);

// protobuf's JSON mapping on one line, without newline: field names as in api.proto, all scalar fields present, 64-bit
// numbers as strings.
Result<std::string> to_json(const google::protobuf::Message& message);

// With --json: the message as one line. Else `text` as it is. One of the two is an answer.
Result<void> print_json(const google::protobuf::Message& message);

// A success sentence, which -q leaves out.
void print_done(const Globals& globals, const std::string& sentence);

// "17:40:10" when that is today, else "2026-11-23 17:40:10"; "-" for 0.
std::string format_until(std::uint64_t unix_s, std::uint64_t now_unix_s);

// "granted", "local USB", … for people.
std::string phase_name(record::Phase phase);
std::string rung_text(record::Rung rung);

}  // namespace usblease::cli

// Parts of records as people read them; used by several verbs. Nothing here is escaped: Table and Facts do that.
#pragma once

#include <google/protobuf/repeated_ptr_field.h>

#include <cstdint>
#include <string>

#include "record.pb.h"

namespace usblease::cli {

// The homes at which the device is present, "a, b" when there are several (a conflict); empty: none.
std::string home_names(const record::Device& device);

// "1h30m", or `zero` for 0.
std::string duration_or(std::uint64_t seconds, const std::string& zero);

// Milliseconds as "1.5s" or "2m".
std::string format_ms(std::uint64_t milliseconds);

// The queue as a table; `with_header` as for Table::format.
std::string format_queue(const google::protobuf::RepeatedPtrField<record::Request>& queue, bool with_header);

}  // namespace usblease::cli

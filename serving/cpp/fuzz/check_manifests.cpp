// Reads manifests, one in each line of the input, and says of each in a line what the library makes of it.

#include <iostream>
#include <string>

#include "flowturbo/error.hpp"
#include "manifest.hpp"

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    try {
      flowturbo::parse_manifest(line);
      std::cout << "accepted\n";
    } catch (const flowturbo::Error& error) {
      std::cout << "refused: " << error.what() << '\n';
    }
  }
  return 0;
}

/// `y' = (a y + b) mod 7`, over and over; each digit in one of two fonts.
struct ChainTask: ASCIITaskRules {
    let steps: Int
    var longestPrompt: Int { 3 }
    var longestResponse: Int { steps }

    func problem(_ draws: inout TaskDraws, demonstrated: inout TaskDraws, errorRate: Double)
        -> (prompt: [UInt8], response: [UInt8])
    {
        func digit(_ value: Int, _ draws: inout TaskDraws) -> UInt8 {
            UInt8(value) + (draws.below(2) == 0 ? UInt8(ascii: "0") : UInt8(ascii: "a"))
        }
        // An `a` of 0 would forget where the chain came from.
        let (a, b) = (1 + draws.below(6), draws.below(7))
        var y = draws.below(7)
        let prompt = [digit(a, &draws), digit(b, &draws), digit(y, &draws)]
        var response: [UInt8] = []
        for _ in 0..<steps {
            y = (a * y + b) % 7
            let wrong = demonstrated.other(than: y, below: 7)
            if demonstrated.chance(errorRate) { y = wrong }
            response.append(digit(y, &demonstrated))
        }
        return (prompt, response)
    }

    private func value(_ character: UInt8) -> Int {
        Int(character < UInt8(ascii: "a") ? character - UInt8(ascii: "0") : character - UInt8(ascii: "a"))
    }

    func isRight(_ response: [UInt8]?, for prompt: [UInt8]) -> Bool? {
        guard prompt.count == 3 else { return nil }
        guard let response, response.count == steps, let last = response.last else { return false }
        var y = value(prompt[2])
        for _ in 0..<steps { y = (value(prompt[0]) * y + value(prompt[1])) % 7 }
        return y == value(last)
    }
}

/// Sums of two numbers and products with a digit, worked out digit by digit from the right.
struct ArithmeticTask: ASCIITaskRules {
    let digits: Int
    var longestPrompt: Int { 2 * digits + 2 }
    var longestResponse: Int { 10 * digits + 3 }

    func problem(_ draws: inout TaskDraws, demonstrated: inout TaskDraws, errorRate: Double)
        -> (prompt: [UInt8], response: [UInt8])
    {
        func number(_ count: Int, _ draws: inout TaskDraws) -> [Int] {
            var number = (0..<count).map { _ in draws.below(10) }
            while number.count > 1, number[0] == 0 { number.removeFirst() }
            return number
        }
        func text(_ number: [Int]) -> [UInt8] { number.map { UInt8($0 + 0x30) } }
        let isSum = draws.below(2) == 0
        let sign = UInt8(ascii: isSum ? "+" : "*")
        let (x, y) = (number(digits, &draws), number(isSum ? digits : 1, &draws))
        let prompt = text(x) + [sign] + text(y) + [UInt8(ascii: "=")]

        var response: [UInt8] = []
        var answer: [Int] = []
        var carry = 0
        for place in 0..<max(x.count, y.count) {
            func digit(_ number: [Int]) -> Int {
                place < number.count ? number[number.count - 1 - place] : 0
            }
            let (p, q) = (digit(x), isSum ? digit(y) : y[0])
            let value = isSum ? p + q + carry : p * q + carry
            let wrong = demonstrated.other(than: value % 10, below: 10)
            let unit = demonstrated.chance(errorRate) ? wrong : value % 10
            if place > 0 { response.append(UInt8(ascii: ",")) }
            response += decimal(p) + [sign] + decimal(q) + [UInt8(ascii: "+")] + decimal(carry)
            response += [UInt8(ascii: "=")] + decimal(value - value % 10 + unit)
            answer.append(unit)
            carry = value / 10
        }
        if carry > 0 { answer.append(carry) }
        while answer.count > 1, answer.last == 0 { answer.removeLast() }
        return (prompt, response + [UInt8(ascii: "#")] + text(answer.reversed()))
    }

    func isRight(_ response: [UInt8]?, for prompt: [UInt8]) -> Bool? {
        guard prompt.last == UInt8(ascii: "="),
            let sign = prompt.firstIndex(where: { $0 == UInt8(ascii: "+") || $0 == UInt8(ascii: "*") }),
            let x = number(prompt[..<sign]), let y = number(prompt[(sign + 1)...].dropLast())
        else { return nil }
        let isSum = prompt[sign] == UInt8(ascii: "+")
        guard isSum || y < 10 else { return nil }
        let (result, overflow) = isSum ? x.addingReportingOverflow(y) : x.multipliedReportingOverflow(by: y)
        guard !overflow else { return nil }
        guard let response, let mark = response.lastIndex(of: UInt8(ascii: "#")) else { return false }
        return Array(response[(mark + 1)...]) == decimal(result)
    }
}

/// Digits in rising order, or letters backwards.
struct ListTask: ASCIITaskRules {
    let count: Int
    let isSorting: Bool
    var longestPrompt: Int { count + 1 }
    var longestResponse: Int { count + 1 }

    private var alphabet: (first: UInt8, count: Int) {
        isSorting ? (UInt8(ascii: "0"), 10) : (UInt8(ascii: "a"), 26)
    }

    private func answer(_ elements: [UInt8]) -> [UInt8] {
        isSorting ? elements.sorted() : elements.reversed()
    }

    func problem(_ draws: inout TaskDraws, demonstrated: inout TaskDraws, errorRate: Double)
        -> (prompt: [UInt8], response: [UInt8])
    {
        let (first, kinds) = alphabet
        let elements = (0..<count).map { _ in first + UInt8(draws.below(kinds)) }
        let response = answer(elements).map { right in
            let wrong = first + UInt8(demonstrated.other(than: Int(right - first), below: kinds))
            return demonstrated.chance(errorRate) ? wrong : right
        }
        return (elements + [UInt8(ascii: "=")], response)
    }

    func isRight(_ response: [UInt8]?, for prompt: [UInt8]) -> Bool? {
        let (first, kinds) = alphabet
        let elements = prompt.dropLast()
        guard prompt.last == UInt8(ascii: "="), !elements.isEmpty,
            elements.allSatisfy({ $0 >= first && Int($0 - first) < kinds })
        else { return nil }
        return response == answer(Array(elements))
    }
}

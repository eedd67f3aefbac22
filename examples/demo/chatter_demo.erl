%% The demo. Starts chatter1 to chatter5 in a line, each with links to its neighbours and
%% nobody else, shows what the network looks like from inside and from the operating system,
%% and lets the two ends work with each other.
%%
%% This process talks to the nodes over their standard_io, never over what it shows.
-module(chatter_demo).

-export([main/0]).
-export([head/1, step/2, failures/1]).

-define(NODES, 5).
-define(TIMEOUT_MS, 60000).
%% A second link to the same node, dialled at the same time by the other, is gone after that.
-define(SETTLE_MS, 5000).
-define(GROUP, <<"demo">>).

-spec main() -> no_return().
main() ->
    ok = io:setopts([{encoding, unicode}]),
    Failed = try run() + chatter_demo_found:run() after chatter_cluster:stop_all() end,
    case Failed of
        0 -> say("~nAll of it worked over ~b links.~n", [?NODES - 1]), halt(0);
        _ -> say("~n~b steps failed.~n", [Failed]), halt(1)
    end.

run() ->
    ok = chatter_cluster:new(#{suffix => ""}),
    head("Five nodes in a line: each links to its neighbours and to nobody else"),
    case step("start the nodes", fun start/0) of
        {ok, Peers} ->
            lists:sum([section(S, Peers) || S <- [network, sockets, messages, work, groups]]);
        failed ->
            1
    end.

start() ->
    Names = [list_to_atom("chatter" ++ integer_to_list(I)) || I <- lists:seq(1, ?NODES)],
    Code = filename:dirname(code:which(?MODULE)),
    Peers = [chatter_cluster:start(Name, #{links => static, neighbours => beside(Name, Names),
                                           args => ["-pa", Code]})
             || Name <- Names],
    chatter_cluster:await_routes(Peers, ?TIMEOUT_MS),
    {ok, Peers, "~s", [lists:join(", ", [atom_to_list(Node) || #{node := Node} <- Peers])]}.

beside(Name, [Name, Right | _]) -> [Right];
beside(Name, [Left, Name]) -> [Left];
beside(Name, [Left, Name, Right | _]) -> [Left, Right];
beside(Name, [_ | Names]) -> beside(Name, Names).

%%% The network, as Chatter sees it

section(network, [First | _] = Peers) ->
    Last = lists:last(Peers),
    head("The network, as its first node knows it"),
    failures([step("topology", fun() -> topology(First, Peers) end),
              step("route, first to last", fun() -> route(First, Last, Peers) end),
              step("route, last to first", fun() -> route(Last, First, lists:reverse(Peers)) end)]);

%%% The sockets, as Chatter and as the operating system see them

section(sockets, Peers) ->
    head("What each node holds: links by chatter:links/0, sockets by the operating system"),
    failures([step(short(Node), fun() -> sockets(Peer, Peers) end)
              || #{node := Node} = Peer <- Peers]);

%%% Messages before anybody is connected

section(messages, [First | _] = Peers) ->
    #{node := Node} = Last = lists:last(Peers),
    head("Messages without a connection, by chatter:send/3 and chatter:call/5"),
    Run = fun(F) ->
                  Result = chatter_cluster:call(First, chatter_demo_node, F, [Node], ?TIMEOUT_MS),
                  [[], []] = [chatter_cluster:call(P, erlang, nodes, [connected])
                              || P <- [First, Last]],
                  Result
          end,
    failures([step("call", fun() -> Run(call_there) end),
              step("send, and an answer", fun() -> Run(send_there) end)]);

%%% Groups: who serves which part of a key space

section(groups, Peers) ->
    head("A group: four nodes share the keys from 0 to 2^32-1, the fifth asks"),
    [First | _] = Four = lists:droplast(Peers),
    Last = lists:last(Peers),
    failures([step("choose ranges", fun() -> share(Four, Last) end),
              step("who serves key 12345", fun() -> owner(Last, 12345) end),
              step("the first leaves", fun() -> leaves(First, Last) end)]);

%%% Distributed Erlang from end to end

section(work, [First | _] = Peers) ->
    #{node := Node} = lists:last(Peers),
    head(io_lib:format("Plain distributed Erlang between ~s and ~s",
                       [short(maps:get(node, First)), short(Node)])),
    Run = fun(F, A) ->
                  chatter_cluster:call(First, chatter_demo_node, F, [Node | A], ?TIMEOUT_MS)
          end,
    failures([step("spawn", fun() -> Run(spawn_there, []) end),
              step("link, exit signal", fun() -> Run(link_there, []) end),
              step("monitor, DOWN", fun() -> Run(monitor_there, []) end),
              step("rpc, erpc", fun() -> Run(rpc_there, []) end),
              step("global", fun() -> Run(global_there, []) end),
              step("pg", fun() -> Run(pg_there, []) end),
              step("one large message", fun() -> Run(large, [64]) end),
              step("many small ones", fun() -> Run(small, [100000]) end)]).

%% Each node takes a quarter: what nobody serves yet.
share(Peers, Asked) ->
    Quarter = 1 bsl 30,
    lists:foreach(
      fun({N, Peer}) ->
              _ = await_coverage(Peer, fun(#{keys := Keys}) -> Keys =:= N * Quarter end),
              [{ok, _} = group(Peer, add_item, [?GROUP, From, To, 8000 + N])
               || {From, To} <- group(Peer, choose, [?GROUP, Quarter])]
      end, lists:enumerate(0, Peers)),
    #{overlaps := []} = await_coverage(Asked, fun(#{gaps := Gaps}) -> Gaps =:= [] end),
    {ok, "~b members, no gaps, no overlaps", [length(group(Asked, members, [?GROUP]))]}.

owner(Asked, Key) ->
    [{Node, _, Port}] = group(Asked, owners, [?GROUP, Key]),
    {ok, "~s, at port ~b", [short(Node), Port]}.

leaves(Peer, Asked) ->
    ok = group(Peer, leave, [?GROUP]),
    #{gaps := Gaps} = await_coverage(Asked, fun(#{gaps := Gaps}) -> Gaps =/= [] end),
    {ok, "nobody serves ~s now", [lists:join(", ", [io_lib:format("~b to ~b", [From, To])
                                                    || {From, To} <- Gaps])]}.

await_coverage(Peer, Enough) ->
    chatter_cluster:wait_until(fun() -> Enough(group(Peer, coverage, [?GROUP])) end, ?SETTLE_MS),
    group(Peer, coverage, [?GROUP]).

group(Peer, Function, Args) -> chatter_cluster:call(Peer, chatter_group, Function, Args).

topology(First, Peers) ->
    Topology = chatter_cluster:call(First, chatter, topology, []),
    Edges = edges(Topology),
    Line = [Node || #{node := Node} <- Peers],
    Expected = lists:sort(lists:zip(lists:droplast(Line), tl(Line))),
    case lists:usort([ordered(Edge, Line) || Edge <- Edges]) of
        Expected -> {ok, "~s", [lists:join(" --- ", [short(Node) || Node <- Line])]};
        Other -> {error, {edges, Other}}
    end.

%% Edges as {From, To} or {From, To, Metric}, in a map or in the second place of a tuple.
edges(#{edges := Edges}) -> [edge(E) || E <- Edges];
edges(#{links := Edges}) -> [edge(E) || E <- Edges];
edges({_Nodes, Edges}) -> [edge(E) || E <- Edges].

edge({From, To}) -> {From, To};
edge({From, To, _Metric}) -> {From, To};
edge(#{from := From, to := To}) -> {From, To}.

ordered({From, To} = Edge, Line) ->
    case place(From, Line) < place(To, Line) of true -> Edge; false -> {To, From} end.

place(Node, Line) -> length(lists:takewhile(fun(N) -> N =/= Node end, Line)).

route(From, #{node := To}, Peers) ->
    {ok, Hops} = chatter_cluster:call(From, chatter, route, [To]),
    Line = [Node || #{node := Node} <- Peers],
    case Line of
        [_ | Hops] -> {ok, "~s", [lists:join(" -> ", [short(Node) || Node <- Line])]};
        _ -> {error, {route, Hops}}
    end.

%% A node has one link per neighbour, and the system must show one socket for each, to nobody else:
%%
%%   a TCP connection   whose other end belongs to a process of that neighbour;
%%   a Unix socket      connected, and open in the process that was dialled. The system does not
%%                      show who is at the other end, so those of all nodes together must be as
%%                      many as the links, and those of each as many as it says it was dialled for.
sockets(Peer, Peers) ->
    chatter_cluster:wait_until(fun() -> seen(Peer, Peers) end, ?SETTLE_MS).

seen(Peer, Peers) ->
    Beside = lists:sort(neighbours_in_line(Peer, Peers)),
    Links = chatter_cluster:call(Peer, chatter, links, []),
    Linked = lists:sort([Node || #{peer := Node} <- Links]),
    Tcp = lists:sort([Node || #{peer := Node, transport := tcp} <- Links]),
    Accepted = length([Node || #{peer := Node, transport := unix, dialled := false} <- Links]),
    ByTcp = lists:sort([Other || {Other, _} <- connections(Peer, Peers)]),
    ByUnix = accepted(Peer),
    AllUnix = lists:sum([accepted(P) || P <- Peers]),
    AllTcp = lists:sum([length(connections(P, Peers)) || P <- Peers]) div 2,
    case {Linked, ByTcp, ByUnix, AllUnix + AllTcp} of
        {Beside, Tcp, Accepted, N} when N =:= length(Peers) - 1 ->
            {ok, {ok, "links: ~b, to ~s; sockets: ~s",
                  [length(Links), lists:join(", ", [short(Node) || Node <- Beside]),
                   lists:join("; ", sockets_text(ByTcp, ByUnix))]}};
        _ ->
            {expected, Beside, links, Links, tcp, ByTcp, unix_accepted, ByUnix,
             all, {AllTcp, AllUnix}}
    end.

sockets_text([], ByUnix) -> [io_lib:format("Unix, ~b of them accepted here", [ByUnix])];
sockets_text(ByTcp, 0) -> [["TCP to ", lists:join(", ", [short(Node) || Node <- ByTcp])]];
sockets_text(ByTcp, ByUnix) -> sockets_text(ByTcp, 0) ++ sockets_text([], ByUnix).

neighbours_in_line(#{node := Node}, Peers) ->
    Line = [N || #{node := N} <- Peers],
    beside(Node, Line).

short(Node) -> hd(string:lexemes(atom_to_list(Node), "@")).

%%% /proc/net: who is connected to whom

%% Which node owns each socket: {inode => node}, from the files of every process.
owners(Peers) ->
    maps:from_list([{Inode, Node} || #{node := Node, os_pid := OsPid} <- Peers,
                                     Inode <- socket_inodes(OsPid)]).

%% The connections of this node whose other end is a process of the demo: [{Node, Ends}].
connections(#{node := Node}, Peers) ->
    Owners = owners(Peers),
    Table = established(),
    Ends = maps:from_list([{{Local, Remote}, Inode} || {Local, Remote, Inode} <- Table]),
    [{Other, {Local, Remote}}
     || {Local, Remote, Inode} <- Table,
        maps:get(Inode, Owners, none) =:= Node,
        Other <- [maps:get(maps:get({Remote, Local}, Ends, none), Owners, none)],
        Other =/= none, Other =/= Node, not is_epmd(Local), not is_epmd(Remote)].

is_epmd(End) ->
    Port = io_lib:format("~4.16.0B", [chatter_cluster:epmd_port()]),
    lists:suffix(lists:flatten(Port), End).

socket_inodes(OsPid) ->
    Dir = "/proc/" ++ OsPid ++ "/fd",
    {ok, Files} = file:list_dir(Dir),
    [Inode || File <- Files,
              {ok, "socket:[" ++ Rest} <- [file:read_link(filename:join(Dir, File))],
              Inode <- string:lexemes(Rest, "]")].

%% [{Local, Remote, Inode}], ends as the kernel writes them: the address is brought to the
%% form of IPv4 where IPv6 merely carries it.
established() ->
    lists:append([[{plain(Local), plain(Remote), Inode}
                   || Line <- lines(File),
                      [_, Local, Remote, "01", _, _, _, _, _, Inode | _]
                          <- [string:lexemes(Line, " ")]]
                  || File <- ["/proc/net/tcp", "/proc/net/tcp6"]]).

%% How many Unix sockets this node has taken on the name that it listens on, `@chatter:...': an
%% accepted socket has the name of the listening one, and is connected (state 03).
accepted(#{os_pid := OsPid}) ->
    Own = socket_inodes(OsPid),
    length([Inode || Line <- lines("/proc/net/unix"),
                     [_, _, _, _, _, "03", Inode, "@chatter:" ++ _] <- [string:lexemes(Line, " ")],
                     lists:member(Inode, Own)]).

plain("0000000000000000FFFF0000" ++ IPv4) -> IPv4;
plain(End) -> End.

lines(File) ->
    case file:read_file(File) of
        {ok, Text} -> tl(string:lexemes(binary_to_list(Text), "\n"));
        {error, enoent} -> []
    end.

%%% Output

-spec failures([term()]) -> non_neg_integer().
failures(Results) -> length([failed || failed <- Results]).

-spec head(iodata()) -> ok.
head(Text) -> say("~n--- ~ts~n", [Text]).

%% Says what it does before it does it, and then how it went.
-spec step(string(), fun(() -> tuple())) -> ok | failed | {ok, term()}.
step(Title, Fun) ->
    say("    ~-24ts", [Title]),
    try Fun() of
        {ok, Format, Args} -> say("✓ " ++ Format ++ "~n", Args);
        {ok, Value, Format, Args} -> say("✓ " ++ Format ++ "~n", Args), {ok, Value};
        {error, Reason} -> failed("~0tp", [Reason])
    catch
        Class:Reason:Stack -> failed("~p: ~0tp at ~0tp", [Class, Reason, Stack])
    end.

failed(Format, Args) ->
    say("✗ " ++ Format ++ "~n", Args),
    failed.

say(Format, Args) -> io:format(Format, Args).

%% What a nemesis scenario means: which links there are, which faults come when, and which faults
%% may overlap. Pure; docs/testing.md has the format.
-module(chatter_nemesis_plan).

-export([links/1, neighbours/2, faults/3, leaves_route/3, kinds/1]).

-export_type([topology/0, link/0, fault/0, planned/0, network/0]).

%% circulant: every node is linked to those Step places on, for each Step. random: a ring and links
%% by the seed, at most Degree for each node.
-type topology() :: {ring, Nodes :: pos_integer()}
                  | {circulant, Nodes :: pos_integer(), Steps :: [pos_integer()]}
                  | {random, Nodes :: pos_integer(), Degree :: pos_integer(), seed()}
                  | {links, [link()]}.

-type link() :: {pos_integer(), pos_integer()}.

-type seed() :: non_neg_integer().

-type network() :: switch | bridge | loopback.

%% kill    SIGKILL; started again after the time given
%% drain   chatter:drain/1, init:stop/0, and started again after the time given
%% stop    SIGSTOP, SIGCONT after the time given
%% cut     both: nothing passes; forth: nothing passes from the first to the second
%% reset   a TCP RST to both ends
%% drop    chatter:disconnect/1 at the first
%% delay   so many milliseconds in each direction
%% loss    percent of the frames in each direction
%% mess    3 % lost, 3 % repeated, 5 % out of order in each direction
%% sever   erlang:disconnect_node/1: a planted violation, never drawn
-type fault() :: {kill | drain | stop, pos_integer()}
               | {cut, pos_integer(), pos_integer(), both | forth}
               | {reset | drop | mess | sever, pos_integer(), pos_integer()}
               | {delay, pos_integer(), pos_integer(), Ms :: pos_integer()}
               | {loss, pos_integer(), pos_integer(), Percent :: pos_integer()}.

%% When it begins, after the start of the scenario; what; and how long it lasts.
-type planned() :: {AtMs :: non_neg_integer(), fault(), ForMs :: non_neg_integer()}.

%% How long a fault is felt after it is over: a node boots and connects, a link is dialled again.
-define(KILL_TAIL_MS, 3000).
-define(TAIL_MS, 1500).

%%% ------------------------------------------------------------------------------------
%%% Topology

-spec links(topology()) -> {Nodes :: pos_integer(), [link()]}.
links({ring, N}) -> links({circulant, N, [1]});
links({circulant, N, Steps}) ->
    {N, lists:usort([link(I, (I - 1 + Step) rem N + 1) || Step <- Steps, I <- lists:seq(1, N)])};
links({random, N, Degree, Seed}) ->
    {N, Ring} = links({ring, N}),
    {N, add_links(N, Degree, rand:seed_s(exsss, Seed), Ring, 20 * N)};
links({links, Links}) ->
    {lists:max([B || {A, B} <- Links, A < B]), lists:usort([link(A, B) || {A, B} <- Links])}.

link(A, B) when A =/= B -> {min(A, B), max(A, B)}.

add_links(_, _, _, Links, 0) -> Links;
add_links(N, Degree, Rand, Links, Tries) ->
    {A, Rand1} = rand:uniform_s(N, Rand),
    {B, Rand2} = rand:uniform_s(N, Rand1),
    Free = A =/= B andalso not lists:member(link(A, B), Links)
        andalso lists:all(fun(I) -> length(neighbours(I, Links)) < Degree end, [A, B]),
    case Free of
        true -> add_links(N, Degree, Rand2, lists:usort([link(A, B) | Links]), Tries - 1);
        false -> add_links(N, Degree, Rand2, Links, Tries - 1)
    end.

%% Whom a node has links to.
-spec neighbours(pos_integer(), [link()]) -> [pos_integer()].
neighbours(I, Links) -> [B || {A, B} <- Links, A =:= I] ++ [A || {A, B} <- Links, B =:= I].

%%% ------------------------------------------------------------------------------------
%%% Faults

%% The kinds that a network can play.
-spec kinds(network()) -> [atom()].
kinds(switch) -> [kill, drain, stop, pause, cut, reset, delay, loss, mess, drop];
kinds(bridge) -> [kill, drain, stop, pause, cut, drop];
kinds(loopback) -> [kill, drain, stop, pause, drop].

%% Random faults, all by the seed: `count` of them, gap_ms apart, at most `concurrent` at a time,
%% of `kinds` (one that stands twice is twice as likely), each of which leaves a route.
-spec faults(Opts, {pos_integer(), [link()]}, seed()) -> [planned()]
              when Opts :: #{count := non_neg_integer(), kinds := [atom()],
                             gap_ms := {non_neg_integer(), pos_integer()},
                             concurrent := pos_integer()}.
faults(#{count := Count} = Opts, Topology, Seed) ->
    plan(Count, 0, [], Opts, Topology, rand:seed_s(exsss, Seed)).

plan(0, _, _, _, _, _) -> [];
plan(Left, Now, Active, #{gap_ms := {Least, Most}} = Opts, Topology, Rand) ->
    {Gap, Rand1} = between(Least, Most, Rand),
    At = Now + Gap,
    Still = [A || {Until, _} = A <- Active, Until > At],
    {{Fault, ForMs} = Drawn, Rand2} = draw(Opts, Topology, Rand1),
    Fits = length(Still) < maps:get(concurrent, Opts)
        andalso leaves_route(Fault, [F || {_, F} <- Still], Topology),
    case Fits of
        true ->
            [{At, Fault, ForMs}
             | plan(Left - 1, At, [{At + felt(Drawn), Fault} | Still], Opts, Topology, Rand2)];
        false ->
            plan(Left, Now + Gap div 4, Still, Opts, Topology, Rand2)
    end.

felt({{Kind, _}, ForMs}) when Kind =:= kill; Kind =:= drain -> ForMs + ?KILL_TAIL_MS;
felt({_, ForMs}) -> ForMs + ?TAIL_MS.

draw(#{kinds := Kinds}, {N, Links}, Rand) ->
    {Kind, Rand1} = one_of(Kinds, Rand),
    {Node, Rand2} = rand:uniform_s(N, Rand1),
    {{X, Y}, Rand3} = one_of(Links, Rand2),
    {Turned, Rand4} = rand:uniform_s(2, Rand3),
    {A, B} = case Turned of 1 -> {X, Y}; 2 -> {Y, X} end,
    {Share, Rand5} = rand:uniform_s(Rand4),
    {fault(Kind, Node, {A, B}, Share), Rand5}.

fault(Kind, Node, _, Share) when Kind =:= kill; Kind =:= drain ->
    {{Kind, Node}, round(1500 * Share)};
%% As many short ones as long ones.
fault(stop, Node, _, Share) -> {{stop, Node}, round(50 * math:pow(100, Share))};
%% A kind, but no fault, of its own: shorter than the hold.
fault(pause, Node, _, Share) -> {{stop, Node}, 50 + round(850 * Share)};
fault(cut, _, {A, B}, Share) when Share < 0.5 -> {{cut, A, B, both}, lasts(2 * Share)};
fault(cut, _, {A, B}, Share) -> {{cut, A, B, forth}, lasts(2 * Share - 1)};
fault(delay, _, {A, B}, Share) -> {{delay, A, B, 200}, lasts(Share)};
fault(loss, _, {A, B}, Share) -> {{loss, A, B, 10}, lasts(Share)};
fault(mess, _, {A, B}, Share) -> {{mess, A, B}, lasts(Share)};
fault(Kind, _, {A, B}, _) when Kind =:= reset; Kind =:= drop -> {{Kind, A, B}, 0}.

lasts(Share) -> 300 + round(3200 * Share).

one_of(List, Rand) ->
    {I, Rand1} = rand:uniform_s(length(List), Rand),
    {lists:nth(I, List), Rand1}.

between(Least, Most, Rand) ->
    {I, Rand1} = rand:uniform_s(Most - Least + 1, Rand),
    {Least + I - 1, Rand1}.

%% Whether all nodes that are not killed or stopped have routes to each other without the links that
%% these faults may take down, each that is stopped has one to come back to, and each that a fault
%% asks to do something is there.
-spec leaves_route(fault(), [fault()], {pos_integer(), [link()]}) -> boolean().
leaves_route(Fault, Active, {N, Links}) ->
    Faults = [Fault | Active],
    AtNodes = [I || {_, I} <- Faults],
    Away = lists:usort(AtNodes),
    Broken = [L || F <- Faults, L <- taken(F)],
    Left = Links -- Broken,
    Alive = lists:seq(1, N) -- Away,
    length(Away) =:= length(AtNodes)
        andalso length(Broken) =:= length(lists:usort(Broken))
        andalso [I || F <- Faults, I <- asked(F), lists:member(I, Away)] =:= []
        andalso connected(Alive, Left)
        andalso lists:all(fun(I) -> neighbours(I, Left) -- Away =/= [] end, Away).

taken({_, _}) -> [];
taken(Fault) -> [link(element(2, Fault), element(3, Fault))].

asked({Kind, I, _}) when Kind =:= drop; Kind =:= sever -> [I];
asked(_) -> [].

connected([], _) -> false;
connected([First | _] = Nodes, Links) ->
    Inside = [L || {A, B} = L <- Links, lists:member(A, Nodes), lists:member(B, Nodes)],
    Nodes -- reach([First], [First], Inside) =:= [].

reach([], Seen, _) -> Seen;
reach([I | Rest], Seen, Links) ->
    New = lists:usort(neighbours(I, Links)) -- Seen,
    reach(New ++ Rest, New ++ Seen, Links).
